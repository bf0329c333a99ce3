"""Which tokens may be drawn, as llguidance writes it: a bit for each, the first in the lowest bit of the first word."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.int32]


def words(width: int) -> int:
    """Of a mask of `width` tokens."""
    return (width + 31) // 32


def bits_of(tokens: Iterable[int], width: int) -> Bits:
    """Those of `tokens` alone."""
    places = np.zeros(words(width) * 32, np.uint8)
    places[list(tokens)] = 1
    bits: Bits = np.packbits(places, bitorder="little").view(np.int32)
    return bits


def allow(bits: Bits, token: int) -> None:
    bits.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)


def forbid(bits: Bits, token: int) -> None:
    bits.view(np.uint32)[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)
