"""Which bytes a vocabulary entry stands for, in the two spellings that language models use.

Byte-level BPE writes each byte as one printable character; sentencepiece writes a space as `▁` and a byte
without a character of its own as `<0x0A>`. Bytes, not text, because a character may be split over tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from server.errors import ModelUnavailable

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"


@dataclass(frozen=True, slots=True)
class Spelling:
    """`to_bytes` reads one vocabulary entry. `strips_space`: a text's first space belongs to the spelling only."""

    to_bytes: Callable[[str], bytes]
    strips_space: bool


def spelling_of(backend: Tokenizer) -> Spelling:
    """The spelling that the tokenizer's decoder undoes.

    Raises:
        ModelUnavailable: for a decoder that is neither.
    """
    parts = _parts(json.loads(backend.decoder.__getstate__())) if backend.decoder is not None else []
    if any(part["type"] == "ByteLevel" for part in parts):
        return Spelling(_byte_level(), strips_space=False)
    for part in parts:
        if part["type"] == "Metaspace":
            return Spelling(_sentencepiece, strips_space=part.get("prepend_scheme", "always") != "never")
        if part["type"] == "Replace" and part.get("pattern") == {"String": _SPACE}:
            strips = any(p["type"] == "Strip" and p.get("start", 0) > 0 for p in parts)
            return Spelling(_sentencepiece, strips_space=strips)
    raise ModelUnavailable("The model's tokenizer.json is of a kind that configi cannot turn back into text.")


def _parts(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def _sentencepiece(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()


def _byte_level() -> Callable[[str], bytes]:
    """Printable bytes stand for themselves; the 68 others, in order, for the characters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}

    def to_bytes(piece: str) -> bytes:
        try:
            return bytes([byte_of[character] for character in piece])
        except KeyError:  # a vocabulary entry of plain text, as some converters leave them
            return piece.encode()

    return to_bytes
