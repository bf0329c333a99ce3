"""Logprobs of tokens, computed with the pass that they come from. Runs in the engine process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from server.engine.largest import indices_of_largest
from server.engine_client.protocol import TokenLogprob


@dataclass(frozen=True, slots=True)
class Scores:
    """Of some rows of a batch, by the ids of their requests: `tokens`, (rows,), and `chosen`, their logprobs; `best`,
    (rows, most), and `values`, theirs, where any row wants alternatives."""

    wanted: list[tuple[int, int]]
    tokens: mx.array
    chosen: mx.array
    best: mx.array | None
    values: mx.array | None

    @classmethod
    def of(cls, logprobs: mx.array, tokens: mx.array, wanted: Mapping[int, tuple[int, int | None]]) -> Scores:
        """`logprobs`, (rows, vocab), `tokens`, (rows,): `wanted` has for each row that counts an id and how many of
        the likeliest tokens it wants."""
        if len(wanted) < logprobs.shape[0]:
            rows = mx.array(list(wanted))
            logprobs, tokens = logprobs[rows], tokens[rows]
        chosen = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
        asked = [(id, top or 0) for id, top in wanted.values()]
        most = min(max(top for _, top in asked), logprobs.shape[-1])
        if not most:
            return cls(asked, tokens, chosen, None, None)
        best = indices_of_largest(logprobs, most)
        return cls(asked, tokens, chosen, best, mx.take_along_axis(logprobs, best, axis=-1))

    @property
    def arrays(self) -> list[mx.array]:
        """To be computed with the pass."""
        return [array for array in (self.tokens, self.chosen, self.best, self.values) if array is not None]

    def read(self) -> dict[int, TokenLogprob]:
        return {id: score for (id, _), score in zip(self.wanted, self.in_order(), strict=True)}

    def in_order(self) -> list[TokenLogprob]:
        """Of each row; waits for them, if they are not computed."""
        tokens: Any = self.tokens.tolist()
        chosen: Any = self.chosen.tolist()
        best: Any = [[] for _ in tokens] if self.best is None else self.best.tolist()
        values: Any = [[] for _ in tokens] if self.values is None else self.values.tolist()
        return [
            TokenLogprob(token, finite(logprob), [(t, finite(v)) for t, v in zip(ids[:top], of[:top], strict=True)])
            for (_, top), token, logprob, ids, of in zip(self.wanted, tokens, chosen, best, values, strict=True)
        ]


def finite(logprob: float) -> float:
    """A token ruled out by logit_bias has -inf, which JSON cannot express; OpenAI sends -9999."""
    return logprob if math.isfinite(logprob) else -9999.0
