"""JSON that parsers are slow on or fall over: each shape is one kind of token or structure, as often as fits in a size.

Pure: the same arguments give the same bytes. `value(name, size)` is the shape alone, `body` puts it into a request.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice

Shape = Callable[[int], bytes]


def _listed(piece: str | bytes) -> Shape:
    """A list of `piece`."""
    raw = piece.encode() if isinstance(piece, str) else piece
    return lambda size: b"[" + b",".join([raw] * max(1, (size - 2) // (len(raw) + 1))) + b"]"


def _string(piece: str | bytes) -> Shape:
    """One string of `piece`."""
    raw = piece.encode() if isinstance(piece, str) else piece
    return lambda size: b'"' + raw * ((size - 2) // len(raw)) + b'"'


def _long(piece: str, before: str = "", after: str = "") -> Shape:
    """One token that is as long as the body."""
    return lambda size: (before + piece * ((size - len(before) - len(after)) // len(piece)) + after).encode()


def _nested(opening: str, closing: str, inside: str = "0") -> Shape:
    def made(size: int) -> bytes:
        depth = (size - len(inside)) // (len(opening) + len(closing))
        return (opening * depth + inside + closing * depth).encode()

    return made


def _object(key: Callable[[int], str], value: str = "0") -> Shape:
    def made(size: int) -> bytes:
        each = len(key(10**6)) + len(value) + 4
        pairs = (f'"{key(number)}":{value}' for number in range(10**9))
        return ("{" + ",".join(islice(pairs, max(1, size // each))) + "}").encode()

    return made


SHAPES: dict[str, Shape] = {
    # Numbers: what leaves the fast path of a float or an integer.
    "2e-320": _listed("2e-320"),
    "1e308": _listed("1e308"),
    "5e-324": _listed("5e-324"),
    "1e400": _listed("1e400"),
    "-0.0": _listed("-0.0"),
    "digits of a float": _listed("0.12345678901234567890123456789"),
    "halfway between floats": _listed("9007199254740993.0000000000000000000000001"),
    "integers beyond 64 bits": _listed("123456789012345678901234567890"),
    "one digit": _listed("0"),
    "one integer": _long("7"),
    "one fraction": _long("3", before="0."),
    "one exponent": _long("9", before="1e"),
    # Containers.
    "[]": _listed("[]"),
    "{}": _listed("{}"),
    "[[[]]]": _listed("[[[]]]"),
    '{"":{}}': _listed('{"":{}}'),
    "deep lists": _nested("[", "]"),
    "deep objects": _nested('{"a":', "}"),
    "depth never closed": _long("["),
    # Strings.
    "empty strings": _listed('""'),
    "short strings": _listed('"ab"'),
    r"escapes": _string(r"\n"),
    r"\u escapes": _string(r"\u0041"),
    "surrogate pairs": _string(r"\ud83d\ude00"),
    "lone surrogates": _string(r"\ud800"),
    "lists of lone surrogates": _listed(r'"\udfff"'),
    "emoji": _string("😀"),
    "not UTF-8": _string(b"\xff\xfe"),
    "quotes": _string(r"\""),
    # Keys.
    "different keys": _object(lambda number: f"k{number:07}"),
    "one key again and again": _object(lambda number: "a"),
    "keys of escapes": _object(lambda number: r"\u0041"),
    # Words, and what is not JSON.
    "true": _listed("true"),
    "null": _listed("null"),
    "NaN": _listed("NaN"),
    "-Infinity": _listed("-Infinity"),
    "spaces": _long(" ", before="[", after="]"),
    "newlines": _long("\n", before="[", after="]"),
    "commas": _long(",", before="[", after="]"),
    "a list cut off": _long("1,", before="["),
    "a string cut off": _long("a", before='"'),
}


def value(name: str, size: int) -> bytes:
    """The shape `name` of about `size` bytes."""
    return SHAPES[name](size)


def body(field: str, raw: bytes) -> bytes:
    """A chat request that is right but for `raw`, which is the value of `field`."""
    sound = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    rest = json.dumps({name: v for name, v in sound.items() if name != field}).encode()
    return b"{" + json.dumps(field).encode() + b":" + raw + b"," + rest[1:]
