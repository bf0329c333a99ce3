"""The tokenizer in a GGUF's metadata as the files of a model folder.

GGUF names how text is split before the merges (`tokenizer.ggml.pre`) and leaves the regex to the reader. Those here are
the ones of the models' own tokenizer.json; tests compare them with transformers and sentencepiece. Others are refused:
a wrong split gives other tokens than the model was trained on, and no error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from quantize.errors import SourceError

# Token types of the GGUF vocabulary.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE = "▁"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class _Split:
    """One value of `tokenizer.ggml.pre`. `ignores_merges`: a word that is a token is one, whatever the merges give."""

    steps: Callable[[], Sequence[pre_tokenizers.PreTokenizer]]
    normalizer: Callable[[], normalizers.Normalizer] | None = None
    ignores_merges: bool = False
    begins_with_bos: bool = False


def _by_regex(digits: str) -> Callable[[], Sequence[pre_tokenizers.PreTokenizer]]:
    split = _WORDS.format(digits=digits)
    return lambda: [
        pre_tokenizers.Split(Regex(split), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


_SPLITS = {
    "gpt-2": _Split(lambda: [_gpt2()]),
    "llama-bpe": _Split(_by_regex(r"\p{N}{1,3}"), ignores_merges=True, begins_with_bos=True),
    "qwen2": _Split(_by_regex(r"\p{N}"), normalizers.NFC),
    "smollm": _Split(lambda: [pre_tokenizers.Digits(individual_digits=True), _gpt2()]),
}


def tokenizer_files(metadata: Mapping[str, Any], *, context_length: int) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json, generation_config.json and the chat template, by file name."""
    tokens = vocabulary(metadata)
    ids = special_ids(metadata)
    names = {"bos": "bos_token", "eos": "eos_token", "pad": "pad_token", "unknown": "unk_token"}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
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
    """The tokenizer that the file describes. Raises SourceError for a kind that is not known exactly."""
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind == "llama":
        tokenizer, begins_with_bos = _sentencepiece(metadata), True
    elif kind == "gpt2" and split in _SPLITS:
        tokenizer, begins_with_bos = _byte_level(metadata, _SPLITS[split]), _SPLITS[split].begins_with_bos
    else:
        raise SourceError(
            f"GGUF tokenizers of the kind {kind!r} / {split!r} are not supported; supported are llama, "
            f"and gpt2 with {', '.join(_SPLITS)}."
        )
    tokens = vocabulary(metadata)
    for token, token_type in zip(tokens, _types(metadata), strict=True):
        if token_type in (_CONTROL, _USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, special=token_type == _CONTROL, normalized=False)])
    bos = special_ids(metadata).get("bos")
    if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", begins_with_bos):
        special = [(tokens[bos], bos)]
        single, pair = f"{tokens[bos]} $A", f"{tokens[bos]} $A {tokens[bos]} $B:1"
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    return tokenizer


def _byte_level(metadata: Mapping[str, Any], split: _Split) -> Tokenizer:
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    ids = {token: id for id, token in enumerate(vocabulary(metadata))}
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=split.ignores_merges))
    if split.normalizer is not None:
        tokenizer.normalizer = split.normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(split.steps()))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any]) -> Tokenizer:
    """BPE by scores, as Llama 2 and Mistral have it; a character without a token becomes its bytes'."""
    tokens = vocabulary(metadata)
    ids = {token: id for id, token in enumerate(tokens)}
    unknown = tokens[special_ids(metadata).get("unknown", 0)]
    merges = _merges(metadata, ids)
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefixed else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return tokenizer


def _merges(metadata: Mapping[str, Any], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to make a token from two others, the best score first: which pair sentencepiece would join next."""
    scores = metadata["tokenizer.ggml.scores"]
    normal = {token for token, kind in zip(ids, _types(metadata), strict=True) if kind == _NORMAL}
    ways = [
        (scores[ids[token]], token[:at], token[at:])
        for token in ids
        if token in normal
        for at in range(1, len(token))
        if token[:at] in normal and token[at:] in normal
    ]
    ways.sort(key=lambda way: -way[0])
    return [(left, right) for _, left, right in ways]


def vocabulary(metadata: Mapping[str, Any]) -> list[str]:
    """Token by id. Raises SourceError for a file without them."""
    tokens: list[str] | None = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise SourceError("The GGUF holds no tokenizer.")
    return tokens


def special_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The ids of bos, eos, pad and unknown, as far as they exist."""
    keys = {"bos": "bos", "eos": "eos", "pad": "padding", "unknown": "unknown"}
    values = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: value for name, value in values.items() if value is not None}


def _types(metadata: Mapping[str, Any]) -> list[int]:
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    return types


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
