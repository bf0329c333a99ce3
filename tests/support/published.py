"""Published models: what people run of each family, and configs whose bits per weight model cards give."""

from __future__ import annotations

from typing import Any

# What model cards of Config-I give the bits per weight of, as far as shapes need it; from the models' descriptions.
PUBLISHED: dict[str, dict[str, Any]] = {
    "MiniMax-M2.7": {
        "model_type": "minimax_m2", "hidden_size": 3072, "intermediate_size": 1536, "num_hidden_layers": 62,
        "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 256,
        "num_experts_per_tok": 8, "vocab_size": 200064, "rms_norm_eps": 1e-6, "rope_theta": 5e6, "rotary_dim": 64,
        "max_position_embeddings": 196608, "shared_intermediate_size": 0, "tie_word_embeddings": False,
    },
    "Qwen3.6-35B-A3B": {
        "model_type": "qwen3_5_moe", "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen3_5_moe_text", "hidden_size": 2048, "num_hidden_layers": 40, "intermediate_size": 0,
            "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "full_attention_interval": 4,
            "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
            "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "num_experts": 256, "num_experts_per_tok": 8,
            "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "vocab_size": 248320,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 262144, "tie_word_embeddings": False,
            "rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": 0.25, "type": "default"},
        },
    },
}  # fmt: skip
# What people run of each family.
EXAMPLES: dict[str, str] = {
    "llama": "Llama 2 and 3, SmolLM2, TinyLlama",
    "mistral": "Mistral 7B, Mistral Nemo",
    "mixtral": "Mixtral 8x7B",
    "ministral3": "Ministral 3, text alone",
    "mistral3": "Mistral Small 3.1, Ministral 3",
    "qwen2": "Qwen2.5",
    "qwen2_moe": "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3-30B-A3B, Qwen3-Coder",
    "qwen3_next": "Qwen3-Next-80B-A3B",
    "qwen3_5": "Qwen3.5 and 3.6, dense: Qwen3.6-27B",
    "qwen3_5_moe": "Qwen3.5 and 3.6 with experts: Qwen3.6-35B-A3B",
    "gemma3_text": "Gemma 3 1B",
    "gemma3": "Gemma 3 from 4B",
    "gemma3n": "Gemma 3n",
    "gemma4": "Gemma 4",
    "gemma4_text": "Gemma 4, text alone",
    "phi3": "Phi-3, Phi-4, Phi-4-mini",
    "phimoe": "Phi-3.5-MoE",
    "gpt_oss": "gpt-oss-20b, gpt-oss-120b",
    "glm4_moe": "GLM-4.5, GLM-4.6",
    "deepseek_v3": "DeepSeek-V3 and R1, Kimi K2",
    "kimi_k25": "Kimi K2.5",
    "llama4": "Llama 4 Scout and Maverick",
    "llama4_text": "MobileLLM-R1",
    "ernie4_5_moe": "ERNIE 4.5 21B-A3B",
    "olmoe": "OLMoE-1B-7B",
    "granitemoe": "Granite 3 MoE",
    "lfm2_moe": "LFM2-8B-A1B",
    "smollm3": "SmolLM3-3B",
    "minimax": "MiniMax-M2",
    "minimax_m2": "MiniMax-M2.1 to M2.7",
}
