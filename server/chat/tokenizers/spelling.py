"""Which bytes a vocabulary entry adds to a text: what the tokenizer's decoder does, token by token.

Byte-level BPE writes each byte as one printable character; sentencepiece writes a space as `▁` and a byte
without a character of its own as `<0x0A>`. Bytes, not text, because a character may be split over tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from server.errors import ModelUnavailable

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# One step of a decoder for one token: text, or bytes when it is sure what they are.
_Step = Callable[[str], str | bytes]


@dataclass(frozen=True, slots=True)
class Spelling:
    """`to_bytes` reads one vocabulary entry. `strips_space`: a text's first space belongs to the spelling only."""

    to_bytes: Callable[[str], bytes]
    strips_space: bool


def spelling_of(backend: Tokenizer) -> Spelling:
    """The spelling that the tokenizer's decoder undoes.

    Raises:
        ModelUnavailable: for a decoder that looks at more than one token at a time, as those for speech do.
    """
    if backend.decoder is None:
        # tokenizers then puts a space between any two tokens.
        raise ModelUnavailable("The model's tokenizer has no decoder, so its tokens cannot be turned back into text.")
    steps: list[_Step] = []
    strips_space = fused = False
    for part in _parts(json.loads(backend.decoder.__getstate__())):
        match part["type"]:
            case "ByteLevel":
                steps.append(_byte_level())
            case "ByteFallback":
                steps.append(_byte_piece)
            case "Replace" if "String" in part["pattern"]:
                steps.append(_replacing(part["pattern"]["String"], part["content"]))
            case "Metaspace":
                steps.append(_replacing(part["replacement"], " "))
                strips_space = strips_space or part.get("prepend_scheme", "always") != "never"
            case "Strip" if fused and part["content"] == " " and part["stop"] == 0:
                strips_space = strips_space or part["start"] > 0
            case "Fuse":
                fused = True
            case kind:
                raise ModelUnavailable(
                    f"The model's tokenizer has a decoder that configi cannot turn back into text: {kind}."
                )
    return Spelling(_one_after_the_other(steps), strips_space)


def _parts(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [part for inner in decoder["decoders"] for part in _parts(inner)]


def _one_after_the_other(steps: Sequence[_Step]) -> Callable[[str], bytes]:
    def to_bytes(piece: str) -> bytes:
        value: str | bytes = piece
        for step in steps:
            if isinstance(value, str):
                value = step(value)
        return value.encode() if isinstance(value, str) else value

    return to_bytes


def _replacing(old: str, new: str) -> _Step:
    return lambda piece: piece.replace(old, new)


def _byte_piece(piece: str) -> str | bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece


def _byte_level() -> _Step:
    """Printable bytes stand for themselves; the 68 others, in order, for the characters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}

    def to_bytes(piece: str) -> str | bytes:
        try:
            return bytes([byte_of[character] for character in piece])
        except KeyError:  # a vocabulary entry of plain text, as some converters leave them
            return piece

    return to_bytes
