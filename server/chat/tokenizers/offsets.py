"""Where in a text each of its tokens begins, in characters. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence


def offsets_in(text: str, tokens: Iterable[bytes], spans: Sequence[tuple[int, int]]) -> list[int]:
    """For a text that was tokenized. `tokens` are the bytes that each token stands for, `spans` the characters that the
    tokenizer says it was made of.

    The bytes are followed through the text, since tokenizers leave the space before a word out of its span. A space
    that only the spelling puts there is passed over, and a token that the text does not hold (BOS) has no bytes here.
    Where the bytes are not those of the text, as a normalizer has changed it, the spans are what there is.
    """
    raw = text.encode()
    found = []
    at = characters = 0
    for token in tokens:
        taken = _taken(raw, at, token)
        if taken is None:
            return _starts(spans)
        found.append(characters - (taken > 0 and _goes_on(raw[at])))
        characters += sum(not _goes_on(byte) for byte in raw[at : at + taken])
        at += taken
    return found if at == len(raw) else _starts(spans)


def offsets_of(tokens: Iterable[bytes]) -> list[int]:
    """For a text that was made of tokens: it is their bytes, one after the other."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    found = []
    at = 0
    for token in tokens:
        completed = decode(token)
        found.append(at + left_by_others(token, completed))
        at += len(completed)
    return found


def left_by_others(token: bytes, completed: str) -> int:
    """How many characters of what a token completed are not its own: it shows that those before it are no characters,
    which become U+FFFD."""
    if not token or _goes_on(token[0]):
        return 0
    own = codecs.getincrementaldecoder("utf-8")("replace").decode(token)
    return max(0, len(completed) - len(own))


def _taken(raw: bytes, at: int, token: bytes) -> int | None:
    """How many bytes of the text at `at` the token stands for; None where it cannot stand there."""
    if raw.startswith(token, at):
        return len(token)
    if token.startswith(b" ") and raw.startswith(token[1:], at):
        return len(token) - 1
    return None


def _goes_on(byte: int) -> bool:
    """Whether it is one of the later bytes of a character."""
    return byte & 0xC0 == 0x80


def _starts(spans: Sequence[tuple[int, int]]) -> list[int]:
    """An empty span is a token that was added: it stands where the one before it ended."""
    found = []
    at = 0
    for start, end in spans:
        at = start if end > start else at
        found.append(at)
        at = max(at, end)
    return found
