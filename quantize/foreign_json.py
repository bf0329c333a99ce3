"""The one door for JSON of others: whatever it holds, it is read in little time, or it is not read.

json.loads raises RecursionError for deep nesting, which is no ValueError, takes quadratic time for an integer of many
digits, and minutes of garbage collection for millions of empty lists.
"""

from __future__ import annotations

import json
from typing import Any

# The header or the index of a model of 200,000 tensors fits into each of these several times.
_LONGEST = 100_000_000
_MOST_CONTAINERS = 800_000
_MOST_VALUES = 4_000_000
_DEEPEST = 64
# That of the largest float: transformers writes 1e30 as an integer where a tokenizer has no limit.
_LONGEST_INTEGER = 309


def read_json(text: bytes) -> Any:
    """The value. Raises ValueError, and nothing else, for what is not JSON or costs more than any model's."""
    if (
        len(text) > _LONGEST
        or text.count(b"[") + text.count(b"{") > _MOST_CONTAINERS
        or text.count(b",") > _MOST_VALUES
    ):
        raise ValueError("too long")
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(_DEEPEST):
        level = [child for item in level for child in _children(item)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def read_object(text: bytes) -> dict[str, Any]:
    """The object. Raises ValueError, and nothing else."""
    if not isinstance(read := read_json(text), dict):
        raise ValueError("not an object")
    return read


def _children(value: object) -> list[Any]:
    """The containers in `value`."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [child for child in inside if isinstance(child, dict | list)]


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise ValueError("an integer of too many digits")
    return int(digits)
