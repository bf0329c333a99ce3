"""GGUF files of small models, as llama.cpp's converter writes them: with the gguf package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from mlx_lm.models import gemma3_text, llama, qwen2, qwen3
from tokenizers.pre_tokenizers import ByteLevel

HIDDEN, HEADS, KV_HEADS, FEED_FORWARD, LAYERS = 32, 4, 2, 64, 2
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ab"]
NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
EXTRA = {
    "llama": {},
    "qwen2": {f"attn_{name}.bias": f"self_attn.{name}_proj.bias" for name in "qkv"},
    "qwen3": {f"attn_{name}_norm.weight": f"self_attn.{name}_norm.weight" for name in "qk"},
    "gemma3": {
        "attn_q_norm.weight": "self_attn.q_norm.weight", "attn_k_norm.weight": "self_attn.k_norm.weight",
        "post_attention_norm.weight": "post_attention_layernorm.weight",
        "ffn_norm.weight": "pre_feedforward_layernorm.weight",
        "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    },
}  # fmt: skip
MODULES = {"llama": llama, "qwen2": qwen2, "qwen3": qwen3, "gemma3": gemma3_text}


def permuted(weight: mx.array, heads: int) -> mx.array:
    """What llama.cpp's converter does to q and k: halves of each head become interleaved pairs."""
    rows, hidden = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, hidden).swapaxes(1, 2).reshape(rows, hidden)


def reference(architecture: str = "llama", **changes: Any) -> tuple[Any, dict[str, mx.array]]:
    """mlx-lm's model with random weights, and these as the converter renames and permutes them, and adds to norms."""
    mx.random.seed(0)
    module = MODULES[architecture]
    arguments = {
        "model_type": module.__name__.rpartition(".")[2], "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "intermediate_size": FEED_FORWARD, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5, "vocab_size": len(TOKENS), "rope_theta": 10_000.0, "max_position_embeddings": 128,
        "head_dim": HIDDEN // HEADS, "tie_word_embeddings": True,
    } | changes  # fmt: skip
    model = module.Model(module.ModelArgs.from_dict(arguments))
    if architecture == "gemma3":
        # Ties the head to the embeddings.
        model.sanitize({})
    weights = {"token_embd.weight": model.model.embed_tokens.weight, "output_norm.weight": model.model.norm.weight}
    for index, layer in enumerate(model.model.layers):
        for gguf_name, path in (
            {f"{name}.weight": f"{p}.weight" for name, p in NAMES.items()} | EXTRA[architecture]
        ).items():
            weight: Any = layer
            for part in path.split("."):
                weight = weight[part]
            heads = {"attn_q.weight": HEADS, "attn_k.weight": KV_HEADS}.get(gguf_name)
            if heads is not None and architecture == "llama":
                weight = permuted(weight, heads)
            if architecture == "gemma3" and weight.ndim == 1:
                weight = weight + 1
            weights[f"blk.{index}.{gguf_name}"] = weight
    if architecture == "gemma3":
        weights["output_norm.weight"] = weights["output_norm.weight"] + 1
    return model, weights


def write_gguf(
    path: Path,
    weights: Mapping[str, mx.array],
    *,
    architecture: str = "llama",
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    **changes: Any,
) -> Path:
    """`kind` is for the matrices; `changes` are values of the metadata, None for a key that is left out."""
    metadata: dict[str, Any] = {
        f"{architecture}.embedding_length": HIDDEN,
        f"{architecture}.feed_forward_length": FEED_FORWARD,
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": KV_HEADS,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.freq_base": 10_000.0,
        f"{architecture}.context_length": 128,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    } | changes
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)
    for name, weight in weights.items():
        array = np.array(weight.astype(mx.float32))
        if array.ndim < 2:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
