"""Logprobs of a batch are those of each row by numpy, in one order, whatever the others want."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from server.engine.scoring.wanted import Wanted
from server.engine_client.protocol import Generate, Sampling, TokenLogprob

# More than a chunk, and not a multiple of one; or a chunk.
WIDTHS = [5, 1024, 5003]


def request(id: int, top: int | None) -> Generate:
    sampling = Sampling(seed=0)
    return Generate(id=id, prompt=[1], max_tokens=1, stop_tokens=[], sampling=sampling, top_logprobs=top)


def logprobs(rows: int, width: int) -> Any:
    """The last row has two possible tokens."""
    values = np.random.default_rng(width).normal(size=(rows, width)).astype(np.float32)
    values = values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
    values[-1] = -np.inf
    values[-1, [1, 3]] = -0.5, -1.0
    return values


def sent(value: float) -> float:
    return float(value) if math.isfinite(value) else -9999.0


@pytest.mark.parametrize("width", WIDTHS)
def test_each_row_has_what_numpy_finds(width: int) -> None:
    tops = [0, 20, None, 3, 100, 20]
    values, tokens = logprobs(len(tops), width), [0, 1, 2, 3, 4, 0]
    wanted = Wanted([request(10 + row, top) for row, top in enumerate(tops)])
    scored = wanted.of(mx.array(values), mx.array(tokens, mx.uint32))
    assert scored is not None
    read = scored.read({10 + row: token for row, token in enumerate(tokens)})
    assert read.keys() == {10, 11, 13, 14, 15}
    for row, top in enumerate(tops):
        if top is None:
            continue
        score = read[10 + row]
        assert (score.token, score.logprob) == (tokens[row], sent(values[row, tokens[row]]))
        best = -np.sort(-values[row])[: min(top, width)]
        assert [logprob for _, logprob in score.top] == [sent(value) for value in best]
        assert [sent(values[row, token]) for token, _ in score.top] == [sent(value) for value in best]
        assert len({token for token, _ in score.top}) == len(best)
    assert [token for token, _ in read[15].top[:2]] == [1, 3]


def test_of_a_request_that_is_gone_nothing_is_read() -> None:
    scored = Wanted([request(1, 2), request(2, 2)]).of(mx.array(logprobs(2, 5)), mx.array([0, 1], mx.uint32))
    assert scored is not None
    assert {id: score.token for id, score in scored.read({2: 1}).items()} == {2: 1}


def test_without_anybody_who_asks_there_are_none() -> None:
    assert Wanted([request(1, None)]).of(mx.array(logprobs(1, 5)), mx.array([0], mx.uint32)) is None


def test_without_alternatives_the_tokens_own_remain() -> None:
    values = logprobs(2, 5)
    scored = Wanted([request(1, 0), request(2, None)]).of(mx.array(values), mx.array([4, 1], mx.uint32))
    assert scored is not None
    assert scored.read({1: 4, 2: 1}) == {1: TokenLogprob(4, float(values[0, 4]), [])}
