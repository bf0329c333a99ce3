"""GGUF -> MLX model folder: `python -m quantize.gguf FILE OUTPUT [--dtype bfloat16]`.

A GGUF of a llama-type model holds everything: weights, tokenizer and chat template. MLX reads the file (block-quantized
tensors arrive as MLX's own affine weight, scales and biases); this module dequantizes, renames, undoes llama.cpp's
row permutation of q and k, and writes what stock mlx_lm loads. The folder appears by one rename, complete or never.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}

_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(?P<block>\d+)\.)?(?P<role>\w+)\.weight")
# Token types of the GGUF vocabulary.
_CONTROL, _USER_DEFINED = 3, 4


class UnsupportedGGUF(Exception):
    """The file is no GGUF, or of a kind that this module does not read; one sentence."""


def convert(gguf: Path, output: Path, dtype: str = "bfloat16") -> None:
    """Write `output` from `gguf`; an `output` that is there already is complete and left alone.

    Raises:
        UnsupportedGGUF: see there. Nothing is written then.
    """
    if output.exists():
        return
    weights, metadata = _load(gguf)
    config = config_of(metadata, tied="output.weight" not in weights, dtype=dtype)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    renamed = {
        mlx_name(name): tensor_of(name, weights, heads=heads, kv_heads=kv_heads).astype(DTYPES[dtype])
        for name in weights
        if name.endswith(".weight")
    }
    files = tokenizer_files(metadata)
    staging = output.with_name(f".{output.name}.{os.getpid()}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        mx.save_safetensors(str(staging / "model.safetensors"), renamed, {"format": "mlx"})
        _write_json(staging / "config.json", config)
        for name, text in files.items():
            (staging / name).write_text(text, encoding="utf-8")
        _publish(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


# ---- weights


def mlx_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    match = _NAME.fullmatch(name)
    table = _IN_BLOCK if match and match["block"] else _WHOLE
    if match is None or match["role"] not in table:
        raise UnsupportedGGUF(f"The GGUF holds a tensor that llama-type models do not have: {name}.")
    path = table[match["role"]]
    return f"model.layers.{match['block']}.{path}.weight" if match["block"] else f"{path}.weight"


def tensor_of(name: str, weights: Mapping[str, mx.array], *, heads: int, kv_heads: int) -> mx.array:
    """The tensor `name` in float32, rows in the order of Hugging Face's llama."""
    base = name.removesuffix(".weight")
    weight, scales = weights[name], weights.get(f"{base}.scales")
    if scales is not None:
        # MLX reads Q4_0, Q4_1 and Q8_0 as affine groups of 32; the packed width tells the bits.
        bits = weight.shape[-1] * 32 // (scales.shape[-1] * 32)
        biases = weights[f"{base}.biases"].astype(mx.float32)
        weight = mx.dequantize(weight, scales.astype(mx.float32), biases, group_size=32, bits=bits)
    weight = weight.astype(mx.float32)
    if base.endswith("attn_q"):
        return unpermuted(weight, heads)
    if base.endswith("attn_k"):
        return unpermuted(weight, kv_heads)
    return weight


def unpermuted(weight: mx.array, heads: int) -> mx.array:
    """Undo llama.cpp's interleaving of rotary pairs. (heads * head_dim, hidden) -> the same shape."""
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


# ---- config


def config_of(metadata: Mapping[str, Any], *, tied: bool, dtype: str) -> dict[str, Any]:
    """config.json as mlx-lm's llama reads it."""
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedGGUF(f"GGUF models of the architecture {architecture!r} are not supported; llama is.")

    def number(key: str) -> Any:
        if (value := metadata.get(f"llama.{key}")) is None:
            raise UnsupportedGGUF(f"The GGUF lacks llama.{key}.")
        return value.item()

    heads = number("attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": number("embedding_length"),
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv"),
        "head_dim": number("embedding_length") // heads,
        "rms_norm_eps": round(number("attention.layer_norm_rms_epsilon"), 12),
        "rope_theta": number("rope.freq_base"),
        "max_position_embeddings": number("context_length"),
        "vocab_size": len(_tokens(metadata)),
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        **{f"{name}_token_id": id for name, id in _special_ids(metadata).items() if name != "unknown"},
    }


# ---- tokenizer


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, str]:
    """tokenizer.json, tokenizer_config.json, generation_config.json and the chat template, as texts by file name."""
    tokens = _tokens(metadata)
    ids = _special_ids(metadata)
    names = {"bos": "bos_token", "eos": "eos_token", "pad": "pad_token", "unknown": "unk_token"}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(metadata["llama.context_length"].item()),
        **{names[name]: tokens[id] for name, id in ids.items()},
    }
    files = {
        "tokenizer.json": tokenizer_of(metadata).to_str(pretty=False),
        "generation_config.json": _json({f"{n}_token_id": ids[n] for n in ("bos", "eos", "pad") if n in ids}),
    }
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
        files["chat_template.jinja"] = template
    files["tokenizer_config.json"] = _json(config)
    return files


def tokenizer_of(metadata: Mapping[str, Any]) -> Tokenizer:
    """The byte-level BPE tokenizer that the file describes."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if (kind, pre) != ("gpt2", "smollm"):
        raise UnsupportedGGUF(f"GGUF tokenizers of the kind {kind!r} / {pre!r} are not supported; gpt2 / smollm is.")
    tokens = _tokens(metadata)
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"].tolist()
    for token, kind_of_token in zip(tokens, types, strict=True):
        if kind_of_token in (_CONTROL, _USER_DEFINED):
            special = kind_of_token == _CONTROL
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    return tokenizer


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens: list[str] | None = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise UnsupportedGGUF("The GGUF holds no tokenizer.")
    return tokens


def _special_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    keys = {"bos": "bos", "eos": "eos", "pad": "padding", "unknown": "unknown"}
    values = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: int(value.item()) for name, value in values.items() if value is not None}


# ---- files


def _load(gguf: Path) -> tuple[dict[str, mx.array], dict[str, Any]]:
    try:
        loaded: Any = mx.load(str(gguf), format="gguf", return_metadata=True)
    except (RuntimeError, ValueError) as error:
        raise UnsupportedGGUF("The file cannot be read as GGUF.") from error
    weights, metadata = loaded
    return weights, metadata


def _publish(staging: Path, output: Path) -> None:
    """One rename, after everything has reached the disk."""
    for path in [*staging.iterdir(), staging]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    staging.rename(output)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(_json(value), encoding="utf-8")


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m quantize.gguf", description="GGUF -> MLX model folder.")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    args = parser.parse_args()
    try:
        convert(args.gguf, args.output, args.dtype)
    except UnsupportedGGUF as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
