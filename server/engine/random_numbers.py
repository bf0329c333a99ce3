"""What the rows of a batch draw by, made for many steps at once. Runs in the engine process.

The number of a row's token i depends on the row's seed and i alone, so those of the steps to come are known before
them; to make them takes as many operations for one step as for all of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from server.engine import compat

# Steps.
_AHEAD = 32
_MASK64 = 2**64 - 1


class RandomNumbers:
    """Of rows with these `seeds`; a row that `decides` draws a second number, before the one for its token."""

    def __init__(self, seeds: Sequence[int], decides: Sequence[bool]) -> None:
        self._streams = np.array([mix(seed) for seed in seeds], np.uint64)
        self._decides = mx.array(list(decides)) if any(decides) else None
        self._first: list[int] = []
        self._numbers: list[mx.array] = []
        self._decisions: list[mx.array] = []

    def at(self, positions: Sequence[int]) -> tuple[mx.array, mx.array | None]:
        """For token `positions[i]` of row i, each (rows, 1): the number that it is drawn by, for
        `compat.draw_by_rows`, and the one to decide by, where any row does."""
        step = positions[0] - self._first[0] if self._first else _AHEAD
        if not 0 <= step < _AHEAD or [first + step for first in self._first] != list(positions):
            self._make(positions)
            step = 0
        return self._numbers[step], self._decisions[step] if self._decisions else None

    def _make(self, positions: Sequence[int]) -> None:
        self._first = list(positions)
        # Modulo 2**64.
        tokens = np.array(positions, np.uint64)[:, None] + np.arange(_AHEAD, dtype=np.uint64)
        numbers = (self._streams[:, None] + tokens).astype(">u8")
        # As `mx.random.key` makes them: the high half first.
        keys = mx.array(numbers.view(">u4").reshape(*numbers.shape, 2).astype(np.uint32))
        if self._decides is not None:
            split = compat.split_by_keys(keys)
            self._decisions = _columns(compat.uniform_by_keys(split[..., 1, :]))
            keys = mx.where(self._decides[:, None, None], split[..., 0, :], keys)
        self._numbers = _columns(compat.numbers_by_keys(keys))


def _columns(numbers: mx.array) -> list[mx.array]:
    """All at once, so that a step takes one without an operation of its own."""
    columns: Any = mx.split(numbers, numbers.shape[1], axis=1)
    return list(columns)


def mix(seed: int) -> int:
    """splitmix64's finalizer: neighbouring seeds must not share their streams shifted by one token."""
    z = (seed + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)
