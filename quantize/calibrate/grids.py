"""Grids: the scale and bias of every group, and least squares for them weighted by what the activations weigh.

A group of `group_size` weights of a row is scale * q + bias with codes q = 0 .. 2^bits - 1. Scales and biases are
rounded to the dtype that the file holds before codes are chosen for them, so what is optimised is what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx

from quantize.calibrate.packing import unpack
from quantize.folder.quant_spec import QuantSpec

# Starts of the alternation: shares of a group's range. A narrower grid cuts outliers off and serves the many. More
# starts come nearer to the least weighted error and no nearer to the source: docs/calibration.md, what was not kept.
_SHARES = (1.0, 0.8, 0.6)
_ROUNDS = 5
# Weights that are fitted at once on a CPU: what a core's cache holds of them is twice as fast as a matrix at once.
_CACHED = 2**18


@dataclass(frozen=True, slots=True)
class Quantized:
    """codes: (E, rows, columns) float32 whole numbers; scales, biases: (E, rows, groups) float32, exact in `dtype`."""

    codes: mx.array
    scales: mx.array
    biases: mx.array
    spec: QuantSpec
    dtype: mx.Dtype

    @property
    def weight(self) -> mx.array:
        """(E, rows, columns) float32: scale * q + bias, as the kernels accumulate it."""
        return spread(self.scales, self.spec) * self.codes + spread(self.biases, self.spec)

    def of(self, rows: slice) -> Quantized:
        return replace(self, codes=self.codes[:, rows], scales=self.scales[:, rows], biases=self.biases[:, rows])


def spread(per_group: mx.array, spec: QuantSpec) -> mx.array:
    """(E, rows, groups) -> (E, rows, columns)."""
    return mx.repeat(per_group, spec.group_size, axis=-1)


def stored(values: mx.array, dtype: mx.Dtype) -> mx.array:
    """`values` as float32 after the rounding of the file's dtype."""
    return values.astype(dtype).astype(mx.float32)


def nearest(values: mx.array, scales: mx.array, biases: mx.array, spec: QuantSpec) -> mx.array:
    """The codes nearest to `values`; scales and biases of the same shape, or one that spreads over it."""
    safe = mx.where(scales == 0, 1.0, scales)
    return mx.clip(mx.round((values - biases) / safe), 0, 2**spec.bits - 1)


def rounding(weight: mx.array, spec: QuantSpec) -> Quantized:
    """`mx.quantize`'s own grids and codes. weight: (E, rows, columns) in the source's dtype."""
    packed, scales, biases = mx.quantize(weight, group_size=spec.group_size, bits=spec.bits, mode="affine")
    codes = unpack(packed, spec).astype(mx.float32)
    return Quantized(codes, scales.astype(mx.float32), biases.astype(mx.float32), spec, weight.dtype)


def weighted_least_squares(target: mx.array, weights: mx.array, first: Quantized) -> Quantized:
    """Grids and codes that lower sum_j weights_j * (target_j - scale * q_j - bias)^2 in every group.

    target: (E, rows, columns) float32; weights: (E, columns), not negative: diag(H). Codes and (scale, bias) take turns
    from several starts, one of them `first`, and each group keeps the best that it met: never worse than `first`.
    """
    importance = _importance(weights, first.spec)
    parts = [_alternated(target[:, rows], importance, first.of(rows)) for rows in _parts(target)]
    codes, scales, biases = (
        mx.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("codes", "scales", "biases")
    )
    return replace(first, codes=codes, scales=scales, biases=biases)


def _parts(target: mx.array) -> list[slice]:
    """Rows do not meet, so a CPU takes them by what its cache holds."""
    experts, rows, columns = target.shape
    size = max(1, _CACHED // (experts * columns)) if mx.default_device() == mx.Device(mx.cpu) else rows
    return [slice(at, at + size) for at in range(0, rows, size)]


def _alternated(target: mx.array, importance: mx.array, first: Quantized) -> Quantized:
    spec, dtype = first.spec, first.dtype
    shape = (*target.shape[:-1], -1, spec.group_size)
    grouped = target.reshape(shape)
    best = _fitted(grouped, importance, first.scales[..., None], first.biases[..., None], first.codes.reshape(shape))
    for scales, biases in [(first.scales[..., None], first.biases[..., None]), *_starts(grouped, spec, dtype)]:
        now = _fitted(grouped, importance, scales, biases, nearest(grouped, scales, biases, spec))
        for _ in range(_ROUNDS):
            best = _better(best, now)
            scales, biases = _least_squares(grouped, importance, now, dtype)
            now = _fitted(grouped, importance, scales, biases, nearest(grouped, scales, biases, spec))
        best = _better(best, now)
        mx.eval(best.codes, best.scales, best.biases, best.error)
    return Quantized(best.codes.reshape(target.shape), best.scales[..., 0], best.biases[..., 0], spec, dtype)


@dataclass(frozen=True, slots=True)
class _Fit:
    """codes: (E, rows, groups, group_size); scales, biases, error: (E, rows, groups, 1)."""

    codes: mx.array
    scales: mx.array
    biases: mx.array
    error: mx.array


def _importance(weights: mx.array, spec: QuantSpec) -> mx.array:
    """(E, 1, groups, group_size). A column that no token used still counts a little, and alone if all are such."""
    mean = weights.mean(axis=-1, keepdims=True)
    floored = mx.where(mean > 0, mx.maximum(weights, 1e-6 * mean), 1.0)
    return floored.reshape(floored.shape[0], 1, -1, spec.group_size)


def _starts(grouped: mx.array, spec: QuantSpec, dtype: mx.Dtype) -> list[tuple[mx.array, mx.array]]:
    low, high = grouped.min(axis=-1, keepdims=True), grouped.max(axis=-1, keepdims=True)
    middle, width = (low + high) / 2, high - low
    steps = 2**spec.bits - 1
    return [(stored(share * width / steps, dtype), stored(middle - share * width / 2, dtype)) for share in _SHARES]


def _fitted(grouped: mx.array, importance: mx.array, scales: mx.array, biases: mx.array, codes: mx.array) -> _Fit:
    error = (importance * mx.square(grouped - scales * codes - biases)).sum(axis=-1, keepdims=True)
    return _Fit(codes, scales, biases, error)


def _better(first: _Fit, second: _Fit) -> _Fit:
    wins = second.error < first.error
    return _Fit(
        mx.where(wins, second.codes, first.codes),
        mx.where(wins, second.scales, first.scales),
        mx.where(wins, second.biases, first.biases),
        mx.where(wins, second.error, first.error),
    )


def _least_squares(grouped: mx.array, importance: mx.array, now: _Fit, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    """The weighted straight line through (code, target): scale rounded first, so that the bias makes up for it."""
    total = importance.sum(axis=-1, keepdims=True)
    code = (importance * now.codes).sum(axis=-1, keepdims=True) / total
    value = (importance * grouped).sum(axis=-1, keepdims=True) / total
    centred = now.codes - code
    variance = (importance * mx.square(centred)).sum(axis=-1, keepdims=True)
    slope = (importance * centred * grouped).sum(axis=-1, keepdims=True) / mx.where(variance > 0, variance, 1.0)
    scales = mx.where(variance > 0, stored(slope, dtype), now.scales)
    return scales, stored(value - scales * code, dtype)
