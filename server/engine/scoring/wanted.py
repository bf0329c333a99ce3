"""The logprobs that the requests of a batch want. Runs in the engine process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx

from server.engine.scoring.scores import Scores
from server.engine_client.protocol import Generate, TokenLogprob


class Wanted:
    """Of `requests`, which are the rows of a batch."""

    def __init__(self, requests: Sequence[Generate]) -> None:
        rows = [row for row, request in enumerate(requests) if request.top_logprobs is not None]
        self._ids = [requests[row].id for row in rows]
        self._tops = [requests[row].top_logprobs or 0 for row in rows]
        self._rows = mx.array(rows) if 0 < len(rows) < len(requests) else None

    def of(self, logprobs: mx.array, tokens: mx.array) -> Scored | None:
        """Of `logprobs`, (rows, vocab), and `tokens`, (rows,), as part of their graph."""
        if not self._ids:
            return None
        if self._rows is not None:
            logprobs, tokens = logprobs[self._rows], tokens[self._rows]
        return Scored(self._ids, self._tops, Scores.of(logprobs, mx.expand_dims(tokens, 1), max(self._tops)))


class Scored(NamedTuple):
    """Of requests with these `ids`, which want so many alternatives each."""

    ids: Sequence[int]
    tops: Sequence[int]
    scores: Scores

    def read(self, tokens: Mapping[int, int]) -> dict[int, TokenLogprob]:
        """By id, of those that drew these tokens; others are gone."""
        read = self.scores.read([tokens.get(id, 0) for id in self.ids], self.tops)
        return {id: score for id, score in zip(self.ids, read, strict=True) if id in tokens}
