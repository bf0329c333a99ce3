"""The recipe, from a matrix and what is known of its inputs to what the file holds: every other module in its order.

Target, grids on it by weighted least squares, GPTQ, then (refit, descent) and a last refit; the guard chooses between
that, the same without the target's correction, the weighted grids alone, and rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import mlx.core as mx

from quantize.calibrate.descent import descend_codes, refit_grids
from quantize.calibrate.gptq import gptq
from quantize.calibrate.grids import Quantized, rounding, weighted_least_squares
from quantize.calibrate.guard import ROUNDING, HeldBack, choose, judge, ratio
from quantize.calibrate.hessian import damped, damping, inverse_root
from quantize.calibrate.packing import pack
from quantize.calibrate.statistics import Statistics, shrunk
from quantize.calibrate.target import corrected
from quantize.folder.quant_spec import QuantSpec

# Raised with any change that gives other bytes for the same input.
VERSION = 1

RECIPE, UNCORRECTED, WEIGHTED = "recipe", "uncorrected", "weighted"
# The order of preference where the guard sees no difference.
_NAMES = (RECIPE, UNCORRECTED, WEIGHTED, ROUNDING)


@dataclass(frozen=True, slots=True)
class SolverSettings:
    """fed, starved: ends of the damping, see `damping`; rounds: of refit and descent; shrinkage: toward the pool, in
    tokens a dimension; unjudged: with fewer tokens a dimension, what the guard cannot judge gets weighted grids only.
    """

    fed: float = 0.1
    starved: float = 1.0
    rounds: int = 2
    shrinkage: float = 1.0
    unjudged: float = 5.0

    def identity(self) -> dict[str, float]:
        """What a plan's fingerprint and a manifest must hold of the solver."""
        return {"version": VERSION, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Report:
    """Of one matrix or expert. `errors`: kind of text -> candidate -> share of the true output's energy, held back."""

    tokens: int
    tokens_per_dimension: float
    damping: float
    chosen: str
    errors: Mapping[str, Mapping[str, float]]

    @property
    def ratio(self) -> float:
        """Held-back error over that of rounding: at most 1, and 1 where nothing could be judged."""
        return ratio(self.errors, self.chosen)


@dataclass(frozen=True, slots=True)
class Solved:
    """weight: uint32; scales, biases: the source's dtype; leading axes as the weight's. One report an expert."""

    weight: mx.array
    scales: mx.array
    biases: mx.array
    reports: tuple[Report, ...]


def solve(
    weight: mx.array,
    statistics: Sequence[Statistics],
    held_back: Sequence[Mapping[str, HeldBack]],
    spec: QuantSpec,
    settings: SolverSettings,
    pool: Statistics | None = None,
) -> Solved:
    """Quantize one matrix (out, in), or experts (E, out, in) in one go, in the weight's dtype for scales and biases.

    statistics, held_back: one entry an expert, or one; held_back is by kind of text and may be empty. pool: the layer's
    statistics, for experts whose inputs are of one space (gate and up). Matrices with the same inputs may be stacked
    along `out`. Needs about eight float32 copies of (E, in, in) and twenty of (E, out, in).
    """
    stack = weight if weight.ndim == 3 else weight[None]
    if not len(stack) == len(statistics) == len(held_back):
        raise ValueError(f"{len(stack)} matrices, {len(statistics)} statistics, {len(held_back)} held back.")
    shares = [damping(one.tokens_per_dimension, settings.fed, settings.starved) for one in statistics]
    found = candidates(stack, statistics, shares, spec, settings, pool)
    reports = tuple(
        _report(stack[place].astype(mx.float32), found, place, one, share, kinds, settings)
        for place, (one, share, kinds) in enumerate(zip(statistics, shares, held_back, strict=True))
    )
    chosen = [found[report.chosen] for report in reports]
    codes, scales, biases = (
        mx.stack([getattr(one, part)[place] for place, one in enumerate(chosen)])
        for part in ("codes", "scales", "biases")
    )
    lead = weight.shape[:-1]
    return Solved(
        pack(codes, spec).reshape(*lead, -1),
        scales.astype(weight.dtype).reshape(*lead, -1),
        biases.astype(weight.dtype).reshape(*lead, -1),
        reports,
    )


def candidates(
    weight: mx.array,
    statistics: Sequence[Statistics],
    shares: Sequence[float],
    spec: QuantSpec,
    settings: SolverSettings,
    pool: Statistics | None = None,
) -> dict[str, Quantized]:
    """Every candidate of the guard by name. weight: (E, out, in); shares: the damping of each expert."""
    if pool is not None:
        statistics = [shrunk(one, pool, settings.shrinkage) for one in statistics]
    hessian = mx.stack([one.hessian for one in statistics])
    diagonal = mx.diagonal(hessian, axis1=-2, axis2=-1)
    hessian = damped(hessian, mx.array(list(shares)))
    root = inverse_root(hessian)
    mx.eval(hessian, diagonal, root)

    true = weight.astype(mx.float32)
    rounded = rounding(weight, spec)
    weighted = weighted_least_squares(true, diagonal, rounded)
    target = corrected(true, mx.stack([one.drift for one in statistics]), _streams(statistics), root)
    on_target = weighted_least_squares(target, diagonal, rounded)
    # Both targets share every Hessian and rows do not meet, so they are solved as the rows of one matrix.
    both = _joined(on_target, weighted)
    targets = mx.concatenate([target, true], axis=1)
    both = gptq(targets, root, both)
    for _ in range(settings.rounds):
        both = descend_codes(targets, hessian, refit_grids(targets, hessian, both))
    both = refit_grids(targets, hessian, both)
    rows = weight.shape[1]
    return {
        RECIPE: _rows(both, 0, rows),
        UNCORRECTED: _rows(both, rows, 2 * rows),
        WEIGHTED: weighted,
        ROUNDING: rounded,
    }


def _report(
    weight: mx.array,
    found: Mapping[str, Quantized],
    place: int,
    statistics: Statistics,
    share: float,
    kinds: Mapping[str, HeldBack],
    settings: SolverSettings,
) -> Report:
    errors = judge(weight, {name: one.weight[place] for name, one in found.items()}, kinds)
    density = statistics.tokens_per_dimension
    unjudged = RECIPE if density >= settings.unjudged else WEIGHTED
    chosen = choose(errors, _NAMES) if errors else unjudged
    return Report(statistics.tokens, density, share, chosen, errors)


def _streams(statistics: Sequence[Statistics]) -> mx.array | None:
    streams = [one.stream for one in statistics if one.stream is not None]
    if not streams:
        return None
    if len(streams) < len(statistics):
        raise ValueError("Some of the statistics have a stream error and some have none.")
    return mx.stack(streams)


def _joined(first: Quantized, second: Quantized) -> Quantized:
    codes, scales, biases = (
        mx.concatenate([getattr(first, part), getattr(second, part)], axis=1) for part in ("codes", "scales", "biases")
    )
    return Quantized(codes, scales, biases, first.spec, first.dtype)


def _rows(both: Quantized, start: int, stop: int) -> Quantized:
    return Quantized(
        both.codes[:, start:stop], both.scales[:, start:stop], both.biases[:, start:stop], both.spec, both.dtype
    )
