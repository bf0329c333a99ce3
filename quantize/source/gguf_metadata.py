"""A GGUF's metadata as the small files of a model folder: config, tokenizer, template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from quantize.errors import SourceError

# Token types of the GGUF vocabulary.
_CONTROL, _USER_DEFINED = 3, 4


def config_of(metadata: Mapping[str, Any], *, tied: bool, dtype: str) -> dict[str, Any]:
    """config.json as mlx-lm's llama reads it."""
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise SourceError(f"GGUF models of the architecture {architecture!r} are not supported; llama is.")

    def number(key: str) -> Any:
        if (value := metadata.get(f"llama.{key}")) is None:
            raise SourceError(f"The GGUF lacks llama.{key}.")
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


def auxiliary_files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json, generation_config.json and the chat template, by file name."""
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
    return {name: text.encode() for name, text in files.items()}


def tokenizer_of(metadata: Mapping[str, Any]) -> Tokenizer:
    """The byte-level BPE tokenizer that the file describes."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if (kind, pre) != ("gpt2", "smollm"):
        raise SourceError(f"GGUF tokenizers of the kind {kind!r} / {pre!r} are not supported; gpt2 / smollm is.")
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
        raise SourceError("The GGUF holds no tokenizer.")
    return tokens


def _special_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    keys = {"bos": "bos", "eos": "eos", "pad": "padding", "unknown": "unknown"}
    values = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: int(value.item()) for name, value in values.items() if value is not None}


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
