"""The tiny models with the tokens of Qwen's coders for filling in the middle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from tests.support.sliding_model import write_sliding_model
from tests.support.tiny_model import tiny_tokenizer, write_tiny_model

PREFIX, SUFFIX, MIDDLE, PAD = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"
REPOSITORY, FILE = "<|repo_name|>", "<|file_sep|>"
QWEN = (PREFIX, MIDDLE, SUFFIX, PAD, REPOSITORY, FILE)


def fim_tokenizer(markers: Sequence[str] = QWEN, *, add_bos: bool = False) -> Tokenizer:
    """Qwen's are added tokens that are not special."""
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    tokenizer.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in markers])
    return tokenizer


def write_fim_model(folder: Path, *, context: int = 4096) -> Path:
    return write_tiny_model(folder, context=context, tokenizer=fim_tokenizer())


def write_sliding_fim_model(folder: Path) -> Path:
    """Six words of its vocabulary, which no text has, are the tokens: its weights know no more of them."""
    write_sliding_model(folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    last = len(tokenizer["model"]["vocab"]) - len(QWEN)
    kept = {text: token for text, token in tokenizer["model"]["vocab"].items() if token < last}
    gone = {text for text, token in tokenizer["model"]["vocab"].items() if token >= last}
    merges = [
        m for m in tokenizer["model"]["merges"] if "".join(m if isinstance(m, list) else m.split(" ")) not in gone
    ]
    tokenizer["model"] |= {"vocab": kept, "merges": merges}
    tokenizer["added_tokens"] += [
        {
            "id": last + index,
            "content": marker,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": False,
        }
        for index, marker in enumerate(QWEN)
    ]
    file.write_text(json.dumps(tokenizer))
    return folder
