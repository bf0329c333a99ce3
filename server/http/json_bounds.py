"""What a JSON body may hold before a parser sees it: bounds on items, containers and numbers that are slow to read.

Parsers are fast on what people send and not on what they might: msgspec 0.22 takes 19 us for a number like 2e-320, so
that 8 MB of them are 23 s, and the garbage collector looks at millions of lists again and again. Pure.
"""

from __future__ import annotations

import re
from itertools import islice

from server.errors import InvalidRequest
from server.settings.types import LimitSettings

# An exponent, or more digits than the fast path of a float or an integer takes.
_SLOW_NUMBER = re.compile(rb"\d\.?[eE]|\d{18}")
# The last one may be cut off: to look for its end again from each of its quotes would take for ever.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def check_bounds(raw: bytes, limits: LimitSettings) -> None:
    """Raises InvalidRequest for a body that would be expensive to parse."""
    # Counting everywhere is cheap and counts too much, the inside of strings too: enough for nearly every body.
    if not _fits(raw, limits) and not _fits(_STRING.sub(b"", raw), limits):
        raise InvalidRequest(
            f"The JSON body is too complex: it may hold {limits.max_json_items} items, {limits.max_json_containers} "
            f"lists and objects, and {limits.max_json_slow_numbers} numbers with an exponent or more than 17 digits."
        )


def _fits(text: bytes, limits: LimitSettings) -> bool:
    containers = text.count(b"[") + text.count(b"{")
    if containers > limits.max_json_containers or containers + text.count(b",") > limits.max_json_items:
        return False
    most = limits.max_json_slow_numbers
    return sum(1 for _ in islice(_SLOW_NUMBER.finditer(text), most + 1)) <= most
