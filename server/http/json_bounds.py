"""What a JSON body may hold before a parser sees it: bounds on items, containers and numbers that are slow to read.

Parsers are fast on what people send and not on what they might: msgspec 0.22 takes 19 us for a number like 2e-320, so
that 8 MB of them are 23 s, and the garbage collector looks at millions of lists again and again. Pure; called with the
whole body, in pieces, so that a thread which does it gives the others their turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from server.errors import InvalidRequest
from server.settings.types import LimitSettings

_PIECE_BYTES = 2**16
# An exponent, or more digits than the fast path of a float or an integer takes.
_SLOW_NUMBER = re.compile(rb"\d\.?[eE]|\d{18}")
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


def check_bounds(raw: bytes, limits: LimitSettings) -> None:
    """Raises InvalidRequest for a body that would be expensive to parse."""
    # Counting everywhere is cheap and counts too much, the inside of strings too: enough for nearly every body.
    if _fits(_pieces(raw), limits):
        return
    if not _fits(_outside_strings(raw, limits.max_json_items), limits):
        raise InvalidRequest(
            f"The JSON body is too complex: it may hold {limits.max_json_items} items, {limits.max_json_containers} "
            f"lists and objects, and {limits.max_json_slow_numbers} numbers with an exponent or more than 17 digits."
        )


def _fits(pieces: Iterator[bytes], limits: LimitSettings) -> bool:
    items = containers = slow = 0
    for piece in pieces:
        containers += piece.count(b"[") + piece.count(b"{")
        items += piece.count(b",")
        slow += sum(1 for _ in _SLOW_NUMBER.finditer(piece))
        if (
            items + containers > limits.max_json_items
            or containers > limits.max_json_containers
            or slow > limits.max_json_slow_numbers
        ):
            return False
    return True


def _pieces(raw: bytes) -> Iterator[bytes]:
    return (raw[start : start + _PIECE_BYTES] for start in range(0, len(raw), _PIECE_BYTES))


def _outside_strings(raw: bytes, most_strings: int) -> Iterator[bytes]:
    """What stands between the strings, some 64 KB at a time, and a comma for each string beyond `most_strings`.

    What is not JSON is cut somehow: the parser refuses it.
    """
    gathered: list[bytes] = []
    size = position = strings = 0
    while position < len(raw):
        strings += 1
        if strings > most_strings:
            gathered.append(b"," * most_strings)
            break
        quote = raw.find(b'"', position)
        end = len(raw) if quote < 0 else quote
        for start in range(position, end, _PIECE_BYTES):
            gathered.append(raw[start : min(start + _PIECE_BYTES, end)])
            size += len(gathered[-1])
            if size >= _PIECE_BYTES:
                yield b" ".join(gathered)
                gathered, size = [], 0
        match = _IN_STRING.match(raw, end + 1)
        position = len(raw) if match is None else match.end() + 1
    yield b" ".join(gathered)
