"""What is known of some inputs, made fit to solve with: once for all matrices that are given the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from quantize.calibrate.hessian import damped, damping, inverse_root
from quantize.calibrate.settings import SolverSettings
from quantize.calibrate.statistics import Statistics, shrunk


@dataclass(frozen=True, slots=True)
class Prepared:
    """Of one matrix's inputs, or of those of E experts. diagonal: (E, in), of H undamped; hessian: H damped, and root:
    that of its inverse, (E, in, in); float32. damping: the share that was added to each."""

    statistics: tuple[Statistics, ...]
    damping: tuple[float, ...]
    diagonal: mx.array
    hessian: mx.array
    root: mx.array

    def rows(self, rows: slice) -> Prepared:
        """For some rows of a matrix: its stream error is theirs alone."""
        own = (one if one.stream is None else replace(one, stream=one.stream[rows]) for one in self.statistics)
        return replace(self, statistics=tuple(own))


def prepare(statistics: Sequence[Statistics], settings: SolverSettings, pool: Statistics | None = None) -> Prepared:
    """statistics: one entry an expert, or one; pool: the layer's, for experts whose inputs are of one space (gate and
    up)."""
    shares = tuple(damping(one.tokens_per_dimension, settings.fed, settings.starved) for one in statistics)
    if pool is not None:
        statistics = [shrunk(one, pool, settings.shrinkage) for one in statistics]
    hessian = mx.stack([one.hessian for one in statistics])
    diagonal = mx.diagonal(hessian, axis1=-2, axis2=-1)
    hessian = damped(hessian, mx.array(shares))
    root = inverse_root(hessian)
    mx.eval(hessian, diagonal, root)
    return Prepared(tuple(statistics), shares, diagonal, hessian, root)
