"""GGUF files of a small llama, as llama.cpp's converter would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models import llama
from tokenizers.pre_tokenizers import ByteLevel

HIDDEN, HEADS, KV_HEADS, FEED_FORWARD, LAYERS = 32, 4, 2, 64, 2
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ab"]
NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def permuted(weight: mx.array, heads: int) -> mx.array:
    """What llama.cpp's converter does to q and k: halves of each head become interleaved pairs."""
    rows, hidden = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, hidden).swapaxes(1, 2).reshape(rows, hidden)


def reference() -> tuple[llama.Model, dict[str, mx.array]]:
    mx.random.seed(0)
    arguments = llama.ModelArgs(
        model_type="llama", hidden_size=HIDDEN, num_hidden_layers=LAYERS, intermediate_size=FEED_FORWARD,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, rms_norm_eps=1e-5, vocab_size=len(TOKENS),
        rope_theta=10_000.0, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    model = llama.Model(arguments)
    weights = {"token_embd.weight": model.model.embed_tokens.weight, "output_norm.weight": model.model.norm.weight}
    for index, layer in enumerate(model.model.layers):
        for gguf_name, path in NAMES.items():
            module: Any = layer
            for part in path.split("."):
                module = module[part]
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(gguf_name)
            weight = module.weight if heads is None else permuted(module.weight, heads)
            weights[f"blk.{index}.{gguf_name}.weight"] = weight
    return model, weights


def write_gguf(path: Path, weights: dict[str, mx.array], **changes: Any) -> Path:
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.embedding_length": mx.array(HIDDEN, mx.uint32),
        "llama.feed_forward_length": mx.array(FEED_FORWARD, mx.uint32),
        "llama.block_count": mx.array(LAYERS, mx.uint32),
        "llama.attention.head_count": mx.array(HEADS, mx.uint32),
        "llama.attention.head_count_kv": mx.array(KV_HEADS, mx.uint32),
        "llama.attention.layer_norm_rms_epsilon": mx.array(1e-5, mx.float32),
        "llama.rope.freq_base": mx.array(10_000.0, mx.float32),
        "llama.context_length": mx.array(128, mx.uint32),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": mx.array([3, 3, 3] + [1] * (len(TOKENS) - 3), mx.int32),
        "tokenizer.ggml.bos_token_id": mx.array(1, mx.uint32),
        "tokenizer.ggml.eos_token_id": mx.array(2, mx.uint32),
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    } | changes
    mx.save_gguf(str(path), weights, {k: v for k, v in metadata.items() if v is not None})
    return path
