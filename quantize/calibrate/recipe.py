"""The recipe, from a matrix and what is known of its inputs to what the file holds: every other module in its order.

Target, grids on it by weighted least squares, GPTQ, then (refit, descent) and a last refit; the guard chooses between
that, the weighted grids alone, and rounding; where it does not choose the first, the same without the target's
correction is solved and may win too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import mlx.core as mx

from quantize.calibrate.descent import Descent
from quantize.calibrate.gptq import gptq
from quantize.calibrate.grids import Quantized, rounding, weighted_least_squares
from quantize.calibrate.guard import ROUNDING, HeldBack, choose, judge, ratio
from quantize.calibrate.packing import pack
from quantize.calibrate.prepared import Prepared
from quantize.calibrate.settings import GPTQ, RECIPE, WEIGHTED, SolverSettings
from quantize.calibrate.statistics import Statistics
from quantize.calibrate.target import corrected
from quantize.folder.quant_spec import QuantSpec

UNCORRECTED: Final = "uncorrected"
# The order of preference where the guard sees no difference.
_NAMES = (RECIPE, UNCORRECTED, GPTQ, WEIGHTED, ROUNDING)


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

    def stacked_as(self, shape: Sequence[int]) -> Solved:
        """With the leading axes of `shape`."""
        weight, scales, biases = (
            part.reshape(*shape[:-1], part.shape[-1]) for part in (self.weight, self.scales, self.biases)
        )
        return Solved(weight, scales, biases, self.reports)


def solve(
    weight: mx.array,
    inputs: Prepared,
    held_back: Sequence[Mapping[str, HeldBack]],
    spec: QuantSpec,
    settings: SolverSettings,
) -> Solved:
    """Quantize one matrix (out, in), or experts (E, out, in) in one go, in the weight's dtype for scales and biases.

    held_back: one entry an expert, or one, by kind of text, and may be empty. Matrices with the same inputs may be
    stacked along `out`. Needs about eight float32 copies of (E, in, in), `inputs` among them, and twenty of
    (E, out, in).
    """
    stack = weight if weight.ndim == 3 else weight[None]
    if not len(stack) == len(inputs.statistics) == len(held_back):
        raise ValueError(f"{len(stack)} matrices, {len(inputs.statistics)} statistics, {len(held_back)} held back.")
    made = _Candidates(stack, inputs, spec, settings)
    reports = [
        _report(stack[place].astype(mx.float32), made, place, one, share, kinds, settings)
        for place, (one, share, kinds) in enumerate(zip(inputs.statistics, inputs.damping, held_back, strict=True))
    ]
    chosen = [made.found[report.chosen] for report in reports]
    codes, scales, biases = (
        mx.stack([getattr(one, part)[place] for place, one in enumerate(chosen)])
        for part in ("codes", "scales", "biases")
    )
    lead = weight.shape[:-1]
    packed = pack(codes, spec).reshape(*lead, -1)
    scales, biases = (part.astype(weight.dtype).reshape(*lead, -1) for part in (scales, biases))
    # Else they hold every candidate, for as long as the layer is solved.
    mx.eval(packed, scales, biases)
    return Solved(packed, scales, biases, tuple(reports))


class _Candidates:
    """Of a stack (E, out, in), each solved when it is first needed."""

    def __init__(self, weight: mx.array, inputs: Prepared, spec: QuantSpec, settings: SolverSettings) -> None:
        self._true = weight.astype(mx.float32)
        self._inputs = inputs
        self._settings = settings
        rounded = rounding(weight, spec)
        self.found = {ROUNDING: rounded, WEIGHTED: weighted_least_squares(self._true, inputs.diagonal, rounded)}
        if settings.method == RECIPE:
            drift = mx.stack([one.drift for one in inputs.statistics])
            target = corrected(self._true, drift, _streams(inputs.statistics), inputs.root)
            self.found[RECIPE] = self._solved(target, weighted_least_squares(target, inputs.diagonal, rounded))
        elif settings.method == GPTQ:
            self.found[GPTQ] = gptq(self._true, inputs.root, self.found[WEIGHTED])

    def add_uncorrected(self) -> None:
        if self._settings.method == RECIPE and UNCORRECTED not in self.found:
            self.found[UNCORRECTED] = self._solved(self._true, self.found[WEIGHTED])

    def _solved(self, target: mx.array, grids: Quantized) -> Quantized:
        descent = Descent.at(target, self._inputs.hessian, gptq(target, self._inputs.root, grids))
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
