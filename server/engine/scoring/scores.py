"""Logprobs of tokens, computed with the pass that they come from. Runs in the engine process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from server.engine.largest import indices_of_largest
from server.engine_client.protocol import TokenLogprob


class Scores(NamedTuple):
    """Of rows: the logprobs of their tokens, `chosen`, (rows, 1); where any row wants alternatives the `best` tokens,
    (rows, most), and `values`, theirs."""

    chosen: mx.array
    best: mx.array | None
    values: mx.array | None

    @classmethod
    def of(cls, logprobs: mx.array, tokens: mx.array, most: int) -> Scores:
        """Of `logprobs`, (rows, vocab), and `tokens`, (rows, 1), with as many as `most` alternatives."""
        chosen = mx.take_along_axis(logprobs, tokens, axis=-1)
        most = min(most, logprobs.shape[-1])
        if not most:
            return cls(chosen, None, None)
        best = indices_of_largest(logprobs, most)
        return cls(chosen, best, mx.take_along_axis(logprobs, best, axis=-1))

    @property
    def arrays(self) -> list[mx.array]:
        """To be computed with the pass."""
        return [array for array in self if array is not None]

    def read(self, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprob]:
        """Of each row, whose token and number of alternatives these are; waits, if they are not computed."""
        chosen: Any = self.chosen.tolist()
        best: Any = [[]] * len(tokens) if self.best is None else self.best.tolist()
        values: Any = [[]] * len(tokens) if self.values is None else self.values.tolist()
        return [
            TokenLogprob(token, finite(logprob), _pairs(ids[:top], of[:top]))
            for token, top, [logprob], ids, of in zip(tokens, tops, chosen, best, values, strict=True)
        ]


def _pairs(tokens: list[int], logprobs: list[float]) -> list[tuple[int, float]]:
    """Descending, so that all are finite when the last one is."""
    if logprobs and not math.isfinite(logprobs[-1]):
        logprobs = [finite(logprob) for logprob in logprobs]
    return list(zip(tokens, logprobs, strict=True))


def finite(logprob: float) -> float:
    """A token ruled out by logit_bias has -inf, which JSON cannot express; OpenAI sends -9999."""
    return logprob if math.isfinite(logprob) else -9999.0
