"""One tiny tokenizer of each kind that language models have: how they write a space, and where they put one of their
own. Each knows the control tokens `<s>`, `</s>` and `<|end|>`, and any text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.support.tiny_model import tiny_tokenizer

BOS, EOS, END = "<s>", "</s>", "<|end|>"
CONTROL = (BOS, EOS, END)
_WORDS = ("▁the", "▁capital", "▁of", "▁France", "▁is", "▁Paris", "▁Hello", "▁world")


def _sentencepiece(*, prepends: bool = False, metaspace: str | None = None, strips: bool = True) -> Tokenizer:
    """As Llama 2, Mistral and Gemma spell: `▁` for a space, `<0x0A>` for a byte."""
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    merges = []
    for character in [*map(chr, range(33, 127)), "▁"]:
        vocabulary.setdefault(character, len(vocabulary))
    for word in _WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if metaspace is not None:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", metaspace, split=False)
    else:
        prefix = [normalizers.Prepend("▁")] if prepends else []
        backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips else steps)
    return _with_control(backend)


def _unigram() -> Tokenizer:
    """As T5 and its like, with a decoder that knows no bytes."""
    pieces = [("<unk>", 0.0), *((word, -3.0) for word in _WORDS), ("▁", -5.0)]
    pieces += [(chr(code), -9.0) for code in range(33, 127)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    backend.decoder = decoders.Metaspace("▁", "always")
    return _with_control(backend)


def _byte_level(*, prefix: bool = False, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    backend = tiny_tokenizer()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if normalizer is not None:
        backend.normalizer = normalizer
    return _with_control(backend, normalized=normalizer is not None)


def _with_control(backend: Tokenizer, *, normalized: bool = False) -> Tokenizer:
    backend.add_special_tokens([AddedToken(text, special=True, normalized=normalized) for text in CONTROL])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return backend


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "a space is prepended": lambda: _sentencepiece(prepends=True),
    "metaspace first": lambda: _sentencepiece(metaspace="first"),
    "metaspace always": lambda: _sentencepiece(metaspace="always"),
    "metaspace never": lambda: _sentencepiece(metaspace="never"),
    "no space of its own": lambda: _sentencepiece(strips=False),
    "unigram": _unigram,
    "byte-level": _byte_level,
    "byte-level with a space first": lambda: _byte_level(prefix=True),
    "normalized": lambda: _byte_level(normalizer=normalizers.NFKC()),
}


def write_tokenizer(folder: Path, backend: Tokenizer, template: str, config: dict[str, Any] | None = None) -> Path:
    """The files that a tokenizer needs of a model folder, without weights. `config` None leaves a key out."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS} | (config or {})
    settings = {name: value for name, value in settings.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(template)
    model = {"model_type": "llama", "vocab_size": backend.get_vocab_size(), "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(model))
    return folder
