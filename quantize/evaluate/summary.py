"""From one number a token to figures with intervals. Pure; numpy only.

Tokens next to each other depend on each other, so the bootstrap draws runs of them and not single ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from quantize.evaluate.divergence import TokenFigures, joined

DRAWS = 500
# Tokens of a run: beyond that, dependence is weak, and a kind of text with few passages still has runs to draw.
RUN = 64
# Of all draws, 95 % lie between.
_LOW, _HIGH = 2.5, 97.5


class Figure(msgspec.Struct, frozen=True):
    """`low` and `high`: the 95 % bootstrap interval; equal to `value` where there is but one run of tokens."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


class Divergence(msgspec.Struct, frozen=True):
    """KL in nats a token. `rms_delta_p`: of the probability of the following token, as a part of one.

    `perplexity` and `reference_perplexity` are of the answers' tokens.
    """

    tokens: int
    passages: int
    kl: Figure
    kl_median: Figure
    kl_p99: Figure
    kl_p999: Figure
    kl_max: float
    same_top: Figure
    rms_delta_p: Figure
    perplexity: Figure
    reference_perplexity: Figure


def summarize(passages: Sequence[TokenFigures], *, draws: int = DRAWS, seed: int = 0) -> Divergence:
    """`passages` are not empty, and none of them is."""
    every = joined(passages)
    runs = [part[start : start + RUN] for part in passages for start in range(0, len(part), RUN)]
    chosen = np.random.default_rng(seed).integers(len(runs), size=(draws, len(runs)))
    again = [joined([runs[number] for number in row]) for row in chosen]

    def figure(measure: Callable[[TokenFigures], float]) -> Figure:
        low, high = np.percentile([measure(part) for part in again], [_LOW, _HIGH])
        return Figure(measure(every), float(low), float(high))

    return Divergence(
        tokens=len(every),
        passages=len(passages),
        kl=figure(lambda part: float(part.kl.mean(dtype=np.float64))),
        kl_median=figure(lambda part: float(np.median(part.kl))),
        kl_p99=figure(lambda part: float(np.percentile(part.kl, 99))),
        kl_p999=figure(lambda part: float(np.percentile(part.kl, 99.9))),
        kl_max=float(every.kl.max()),
        same_top=figure(lambda part: float(part.same_top.mean(dtype=np.float64))),
        rms_delta_p=figure(_rms_delta_p),
        perplexity=figure(lambda part: _perplexity(part.candidate)),
        reference_perplexity=figure(lambda part: _perplexity(part.reference)),
    )


def _rms_delta_p(part: TokenFigures) -> float:
    difference = np.exp(part.candidate, dtype=np.float64) - np.exp(part.reference, dtype=np.float64)
    return math.sqrt(float(np.mean(difference**2)))


def _perplexity(log_probabilities: np.ndarray) -> float:
    return math.exp(min(-float(log_probabilities.mean(dtype=np.float64)), 700))
