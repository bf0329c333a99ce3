"""Tiny random models of mlx-lm's families, as folders that mlx-lm loads: name -> config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from tests.support.checkpoints import gemma4

VOCABULARY, LAYERS, WINDOW = 64, 4, 8
_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": LAYERS, "intermediate_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "max_position_embeddings": 512, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "num_local_experts": 4, "sliding_window": WINDOW, "tie_word_embeddings": True,
}  # fmt: skip
_KINDS = ["sliding_attention", "full_attention"] * 2
_GEMMA4_SMALL = {
    "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 2,
    "global_head_dim": 32, "layer_types": _KINDS,
}  # fmt: skip
_LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4, "full_attention_interval": 2,
}  # fmt: skip

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "qwen3_moe": {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True},
    "gemma3_text": {"sliding_window_pattern": 2},
    "gpt_oss": {"layer_types": _KINDS, "rope_scaling": None},
    "phi3": {},
    "olmoe": {},
    "mixtral": {},
    "qwen2_moe": {"shared_expert_intermediate_size": 64},
    "cohere2": {"sliding_window_pattern": 2},
    "deepseek_v3": {},
    "falcon_h1": {},
    "gemma4_text": _GEMMA4_SMALL,
    "smollm3": {},
    "phimoe": {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8,
                                "long_mscale": 1.0, "short_mscale": 1.0}},
    "glm4_moe": {"norm_topk_prob": True, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "n_routed_experts": 4,
                 "routed_scaling_factor": 1.0, "first_k_dense_replace": 1, "rope_scaling": None, "use_qk_norm": True,
                 "attention_bias": False, "partial_rotary_factor": 0.5},
    "llama4_text": {"intermediate_size_mlp": 64, "no_rope_layers": [1, 0, 1, 0], "use_qk_norm": True},
    "granitemoe": {"logits_scaling": 2.0, "attention_multiplier": 0.25, "embedding_multiplier": 2.0,
                   "residual_multiplier": 0.5, "attention_bias": False},
    "lfm2_moe": {"norm_topk_prob": True, "use_expert_bias": True, "num_dense_layers": 1, "norm_eps": 1e-5,
                 "conv_bias": False, "conv_L_cache": 3, "layer_types": ["conv", "full_attention"] * 2},
    "ministral3": {"layer_types": _KINDS, "rope_parameters": {"rope_theta": 10000.0, "type": "default",
                   "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16}},
    "qwen3_next": _LINEAR | {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True,
                             "shared_expert_intermediate_size": 32, "partial_rotary_factor": 0.5},
    "qwen3_5": _LINEAR | {"shared_expert_intermediate_size": 32},
    "gemma3n": {"num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCABULARY, "rope_local_base_freq": 1e4,
                "final_logit_softcapping": 30.0, "layer_types": _KINDS, "activation_sparsity_pattern": [0.0] * LAYERS,
                "hidden_size_per_layer_input": 16, "altup_num_inputs": 2, "altup_coef_clip": 120.0,
                "altup_correct_scale": True, "altup_active_idx": 0, "laurel_rank": 8},
}  # fmt: skip
# Their numbers stand in `text_config`.
_NESTED = ("qwen3_5", "gemma3n")


def config_of(family: str) -> dict[str, Any]:
    if family == "gemma4":
        config, _ = gemma4()
        config["text_config"]["sliding_window"] = WINDOW
        return config
    config = _COMMON | FAMILIES[family] | {"model_type": family}
    return {"model_type": family, "text_config": config} if family in _NESTED else config


def write_family(folder: Path, family: str, *, dtype: mx.Dtype = mx.float32, seed: int = 0) -> Path:
    """Weights only; random, the same for the same arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(family)
    mx.random.seed(seed)
    model_class, arguments_class = _get_classes(json.loads(json.dumps(config)))
    model = model_class(arguments_class.from_dict(json.loads(json.dumps(config))))
    weights = {name: value.astype(dtype) for name, value in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder
