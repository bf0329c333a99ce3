"""Whether generated tokens end in a loop: the failure of damaged models that no average shows. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

# A phrase may come back; this much of nothing else is a loop.
FEWEST_REPEATS = 4
FEWEST_TOKENS = 64
LONGEST_PERIOD = 512


class Loop(msgspec.Struct, frozen=True):
    """`period` tokens come again and again from the position `start` on, up to the end."""

    start: int
    period: int
    repeats: int


def find_loop(tokens: Sequence[int]) -> Loop | None:
    """The loop that `tokens` end in, of the shortest period; None when they end in none."""
    for period in range(1, min(LONGEST_PERIOD, len(tokens) // FEWEST_REPEATS) + 1):
        start = len(tokens) - period
        while start > 0 and tokens[start - 1] == tokens[start - 1 + period]:
            start -= 1
        length = len(tokens) - start
        if length >= max(FEWEST_TOKENS, period * FEWEST_REPEATS):
            return Loop(start, period, length // period)
    return None
