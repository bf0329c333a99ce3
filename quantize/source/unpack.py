"""How weights that a checkpoint holds packed are multiplied out, a few rows at a time. One class for each layout.

Every one of these computes in float32 and rounds once, so a build from a packed source is a build from exactly the
values that the packing stands for. Which tensor is packed how is read in `packed.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from quantize.errors import SourceError
from quantize.source.checkpoint import Parts, SourceTensor
from quantize.source.integer_widths import packed_sizes

# Integers become a few float32 copies of themselves: less than a block of rows at once.
_ELEMENTS_AT_ONCE = 500_000
_DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
# AutoAWQ's order of the eight codes in a word.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True, slots=True)
class Scaled:
    """One code an element (fp8, int8), and a scale for each block of them, perhaps a zero too.

    `runs` says for every axis how many elements share a scale; `scale` and `zero` have the shape of the grid of blocks.
    """

    codes: SourceTensor
    scale: SourceTensor | None
    runs: tuple[int, ...]
    dtype: str
    gain: float = 1
    zero: SourceTensor | None = None

    def block(self, parts: Parts, start: int, stop: int, first: int, last: int) -> mx.array:
        values = _numbers(parts.part(self.codes, start, stop, first, last), self.codes.dtype)
        if self.scale is None:
            return values.astype(_DTYPES[self.dtype])
        shape, grid = self.codes.shape, self.scale.shape
        rows = np.unravel_index(np.arange(start, stop), shape[:-1])
        at = np.ravel_multi_index([i // run for i, run in zip(rows, self.runs[:-1], strict=True)], grid[:-1])
        low, high = int(at.min()), int(at.max()) + 1
        columns = mx.arange(first, last) // self.runs[-1]

        def of_elements(part: SourceTensor) -> mx.array:
            numbers = _numbers(parts.part(part, low, high, 0, grid[-1]), part.dtype)
            return numbers[mx.array(at - low)][:, columns]

        if self.zero is not None:
            values = values - of_elements(self.zero)
        return (values * (of_elements(self.scale) * self.gain)).astype(_DTYPES[self.dtype])


@dataclass(frozen=True, slots=True)
class MlxPacked:
    """MLX's own layouts: affine, mxfp4, mxfp8, nvfp4. `gain` is one number for all of it, which some divide by."""

    codes: SourceTensor
    scales: SourceTensor
    biases: SourceTensor | None
    group_size: int
    bits: int
    mode: str
    dtype: str
    gain: SourceTensor | None = None
    divides: bool = False

    def block(self, parts: Parts, start: int, stop: int, first: int, last: int) -> mx.array:
        codes, scales, biases = (
            None if part is None else parts.part(part, start, stop, 0, part.matrix[1])
            for part in (self.codes, self.scales, self.biases)
        )
        assert codes is not None and scales is not None
        if biases is not None:
            # Affine codes are multiplied out in the dtype of their scales.
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        rows = mx.dequantize(
            codes.view(mx.uint32), scales, biases,
            group_size=self.group_size, bits=self.bits, mode=self.mode, dtype=mx.float32,
        )  # fmt: skip
        if self.gain is not None:
            gain = parts.part(self.gain, 0, 1, 0, 1).astype(mx.float32)
            rows = mx.divide(rows, gain) if self.divides else rows * gain
        return rows[:, first:last].astype(_DTYPES[self.dtype])


@dataclass(frozen=True, slots=True)
class Mxfp4Blocks(MlxPacked):
    """mxfp4 as gpt-oss has it, which mlx-lm's `sanitize` moves packed."""


@dataclass(frozen=True, slots=True)
class GroupedIntegers:
    """Integers of a few bits in words of 32, with a scale and a zero for each group of inputs.

    rows (compressed-tensors): codes (out, words), scales and zeros (out, groups), zeros packed along out; before 0.9
    not packed, and less the middle of the range.
    gptq and awq: codes, scales and zeros the other way round. `zeros` None: the middle of the range.
    `groups` None: groups of equal size, in order; else the group of each input.
    """

    layout: Literal["rows", "gptq", "awq"]
    codes: SourceTensor
    scales: SourceTensor
    zeros: SourceTensor | None
    groups: SourceTensor | None
    bits: int
    inputs: int
    dtype: str
    # 1 for GPTQ's first format, which stores zeros less one.
    zero_plus: int = 0

    def block(self, parts: Parts, start: int, stop: int, first: int, last: int) -> mx.array:
        step = max(8, _ELEMENTS_AT_ONCE // self.inputs // 8 * 8)
        pieces = []
        for at in range(start, stop, step):
            pieces.append(self._piece(parts, at, min(at + step, stop))[:, first:last])
            mx.eval(pieces)
        return mx.concatenate(pieces)

    def _piece(self, parts: Parts, start: int, stop: int) -> mx.array:
        count = self.scales.matrix[1 if self.layout == "rows" else 0]
        codes = mx.array(self._codes(parts, start, stop).astype(np.float32))
        zeros, scales = self._zeros(parts, start, stop), self._scales(parts, start, stop)
        at = mx.array(self._groups(parts, count).astype(np.int32))
        return ((codes - zeros[:, at]) * scales[:, at]).astype(_DTYPES[self.dtype])

    def _groups(self, parts: Parts, count: int) -> np.ndarray[Any, Any]:
        """The group of each input."""
        in_order = np.arange(self.inputs) // -(-self.inputs // count)
        if self.groups is None:
            return in_order
        found: np.ndarray[Any, Any] = np.array(parts.part(self.groups, 0, 1, 0, self.inputs))[0]
        if (found == -1).all():
            # compressed-tensors leaves it so where the order is the plain one.
            return in_order
        # MLX would read whatever memory lies behind the groups.
        if found.min() < 0 or found.max() >= count:
            raise SourceError(f"{self.groups.name} names groups that {self.scales.name} does not have.")
        return found

    def _codes(self, parts: Parts, start: int, stop: int) -> _Words:
        if self.layout == "rows":
            words = _words(parts.part(self.codes, start, stop, 0, self.codes.matrix[1]))
            return _in_words(words, self.bits, self.inputs)
        if self.layout == "gptq":
            words = _words(parts.part(self.codes, 0, self.codes.matrix[0], start, stop))
            return _stream(words.T, self.bits)[:, : self.inputs]
        return self._awq(parts, self.codes, start, stop)

    def _zeros(self, parts: Parts, start: int, stop: int) -> mx.array:
        if self.zeros is None:
            return mx.full((stop - start, self.scales.matrix[1 if self.layout == "rows" else 0]), 2 ** (self.bits - 1))
        height, width = self.zeros.matrix
        if self.layout == "rows" and self.zeros.dtype == "I8":
            return parts.part(self.zeros, start, stop, 0, width).astype(mx.float32) + (1 << (self.bits - 1))
        if self.layout == "awq":
            found = self._awq(parts, self.zeros, start, stop)
        elif self.layout == "gptq":
            found = _stream(_words(parts.part(self.zeros, 0, height, 0, width)), self.bits)[:, start:stop].T
        else:
            packed = _words(parts.part(self.zeros, 0, height, 0, width))
            found = _in_words(packed.T, self.bits, self.scales.matrix[0]).T[start:stop]
        return mx.array(((found + self.zero_plus) % 2**self.bits).astype(np.float32))

    def _scales(self, parts: Parts, start: int, stop: int) -> mx.array:
        height, width = self.scales.matrix
        if self.layout == "rows":
            return parts.part(self.scales, start, stop, 0, width).astype(mx.float32)
        return parts.part(self.scales, 0, height, start, stop).T.astype(mx.float32)

    def _awq(self, parts: Parts, tensor: SourceTensor, start: int, stop: int) -> _Words:
        """Outputs start..stop of a tensor that is packed along them."""
        first, last = start // 8, -(-stop // 8)
        words = _words(parts.part(tensor, 0, tensor.matrix[0], first, last))
        shifts = np.array(_AWQ_ORDER, np.uint32) * np.uint32(4)
        codes = (words[..., None] >> shifts) & np.uint32(15)
        return codes.reshape(len(words), -1).T[start - 8 * first : stop - 8 * first]


_Words = np.ndarray[tuple[int, ...], np.dtype[np.uint32]]


def _words(part: mx.array) -> _Words:
    return np.array(part.view(mx.uint32))


def _unpacked(words: _Words, bits: int) -> _Words:
    """(rows, words) -> (rows, codes); no code crosses a word."""
    shifts = np.arange(0, 32 // bits * bits, bits, dtype=np.uint32)
    return ((words[..., None] >> shifts) & np.uint32(2**bits - 1)).reshape(len(words), -1)


def _in_words(words: _Words, bits: int, count: int) -> _Words:
    """(rows, words) -> (rows, count), in whichever of two ways so many codes take so many words."""
    streamed = words.shape[1] == packed_sizes(count, bits)[0]
    return (_stream if streamed else _unpacked)(words, bits)[:, :count]


def _stream(words: _Words, bits: int) -> _Words:
    """The same for codes that go on from one word into the next, as GPTQ's of 3 bits do."""
    if 32 % bits == 0:
        return _unpacked(words, bits)
    at = np.arange(words.shape[1] * 32 // bits) * bits
    padded = np.concatenate([words, np.zeros((len(words), 1), np.uint32)], axis=1).astype(np.uint64)
    pairs = padded[:, at // 32] | padded[:, at // 32 + 1] << np.uint64(32)
    return ((pairs >> (at % 32).astype(np.uint64)) & np.uint64(2**bits - 1)).astype(np.uint32)


def _numbers(stored: mx.array, dtype: str) -> mx.array:
    """Codes or scales as float32."""
    if dtype == "F8_E4M3":
        return mx.from_fp8(stored, dtype=mx.float32)
    if dtype == "F8_E5M2":
        # The upper half of a float16.
        return (stored.astype(mx.uint16) << 8).view(mx.float16).astype(mx.float32)
    if dtype in ("F8_E8M0", "U8"):
        # Exponents of two, without a sign; 255 is NaN.
        exponents = stored.astype(mx.float32)
        return mx.where(exponents == 255, math.nan, mx.power(2.0, exponents - 127))
    return stored.astype(mx.float32)
