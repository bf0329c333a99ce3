"""The recipe, from a matrix and what is known of its inputs to what the file holds: every other module in its order.

Target, grids on it by weighted least squares, GPTQ, then (refit, descent) and a last refit; the guard chooses between
that, the weighted grids alone, and rounding; where it does not choose the first, the same without the target's
correction is solved and may win too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import mlx.core as mx

from quantize.calibrate.descent import Descent
from quantize.calibrate.gptq import gptq
from quantize.calibrate.grids import Quantized, rounding, weighted_least_squares
from quantize.calibrate.guard import ROUNDING, HeldBack, choose, judge, ratio
from quantize.calibrate.hessian import damped, damping, inverse_root
from quantize.calibrate.packing import pack
from quantize.calibrate.statistics import Statistics, shrunk
from quantize.calibrate.target import corrected
from quantize.folder.quant_spec import QuantSpec

# Raised with any change that gives other bytes for the same input.
VERSION = 2

RECIPE: Final = "recipe"
GPTQ: Final = "gptq"
WEIGHTED: Final = "weighted"
UNCORRECTED: Final = "uncorrected"
# The order of preference where the guard sees no difference.
_NAMES = (RECIPE, UNCORRECTED, GPTQ, WEIGHTED, ROUNDING)


@dataclass(frozen=True, slots=True)
class SolverSettings:
    """method: how far the recipe goes; what is less than all of it is there to be compared with. fed, starved: ends of
    the damping, see `damping`; rounds: of refit and descent; shrinkage: toward the pool, in tokens a dimension;
    unjudged: with fewer tokens a dimension, what the guard cannot judge gets weighted grids only.
    """

    method: Literal["recipe", "gptq", "weighted"] = RECIPE

    fed: float = 0.1
    starved: float = 1.0
    rounds: int = 2
    shrinkage: float = 1.0
    unjudged: float = 5.0

    def identity(self) -> dict[str, Any]:
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
    made = _Candidates(stack, statistics, shares, spec, settings, pool)
    reports = [
        _report(stack[place].astype(mx.float32), made, place, one, share, kinds, settings)
        for place, (one, share, kinds) in enumerate(zip(statistics, shares, held_back, strict=True))
    ]
    chosen = [made.found[report.chosen] for report in reports]
    codes, scales, biases = (
        mx.stack([getattr(one, part)[place] for place, one in enumerate(chosen)])
        for part in ("codes", "scales", "biases")
    )
    lead = weight.shape[:-1]
    return Solved(
        pack(codes, spec).reshape(*lead, -1),
        scales.astype(weight.dtype).reshape(*lead, -1),
        biases.astype(weight.dtype).reshape(*lead, -1),
        tuple(reports),
    )


class _Candidates:
    """Of a stack (E, out, in), each solved when it is first needed. `shares`: the damping of each expert."""

    def __init__(
        self,
        weight: mx.array,
        statistics: Sequence[Statistics],
        shares: Sequence[float],
        spec: QuantSpec,
        settings: SolverSettings,
        pool: Statistics | None,
    ) -> None:
        if pool is not None:
            statistics = [shrunk(one, pool, settings.shrinkage) for one in statistics]
        hessian = mx.stack([one.hessian for one in statistics])
        self._diagonal = mx.diagonal(hessian, axis1=-2, axis2=-1)
        self._hessian = damped(hessian, mx.array(list(shares)))
        self._root = inverse_root(self._hessian)
        mx.eval(self._hessian, self._diagonal, self._root)
        self._true = weight.astype(mx.float32)
        self._settings = settings
        rounded = rounding(weight, spec)
        self.found = {ROUNDING: rounded, WEIGHTED: weighted_least_squares(self._true, self._diagonal, rounded)}
        if settings.method == RECIPE:
            drift = mx.stack([one.drift for one in statistics])
            target = corrected(self._true, drift, _streams(statistics), self._root)
            self.found[RECIPE] = self._solved(target, weighted_least_squares(target, self._diagonal, rounded))
        elif settings.method == GPTQ:
            self.found[GPTQ] = gptq(self._true, self._root, self.found[WEIGHTED])

    def add_uncorrected(self) -> None:
        if self._settings.method == RECIPE and UNCORRECTED not in self.found:
            self.found[UNCORRECTED] = self._solved(self._true, self.found[WEIGHTED])

    def _solved(self, target: mx.array, grids: Quantized) -> Quantized:
        descent = Descent.at(target, self._hessian, gptq(target, self._root, grids))
        for _ in range(self._settings.rounds):
            descent = descent.grids().codes()
        return descent.grids().now


def _report(
    weight: mx.array,
    made: _Candidates,
    place: int,
    statistics: Statistics,
    share: float,
    kinds: Mapping[str, HeldBack],
    settings: SolverSettings,
) -> Report:
    def judged(names: Iterable[str]) -> dict[str, dict[str, float]]:
        return judge(weight, {name: made.found[name].weight[place] for name in names}, kinds)

    density = statistics.tokens_per_dimension
    errors = judged(made.found)
    if not errors:
        unjudged = settings.method if density >= settings.unjudged else WEIGHTED
        return Report(statistics.tokens, density, share, unjudged, errors)
    chosen = _choice(errors)
    if chosen != settings.method and settings.method == RECIPE:
        made.add_uncorrected()
        errors = judged(made.found)
        chosen = _choice(errors)
    return Report(statistics.tokens, density, share, chosen, errors)


def _choice(errors: Mapping[str, Mapping[str, float]]) -> str:
    known = next(iter(errors.values()))
    return choose(errors, [name for name in _NAMES if name in known])


def _streams(statistics: Sequence[Statistics]) -> mx.array | None:
    streams = [one.stream for one in statistics if one.stream is not None]
    if not streams:
        return None
    if len(streams) < len(statistics):
        raise ValueError("Some of the statistics have a stream error and some have none.")
    return mx.stack(streams)
