"""Draws for the rows of a batch: what the filters keep, and that a row draws alone what it draws in company."""

from __future__ import annotations

import math
import random
from typing import Any

import mlx.core as mx
import pytest

from server.engine import compat
from server.engine.largest import FEW, indices_of_largest, largest
from server.engine.random_numbers import RandomNumbers, mix
from server.engine.sampling import Sampler, Thresholds
from server.engine_client.protocol import Sampling

# More than a chunk, and not a multiple of one.
WIDE = 5003


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(seed=0, top_k=2), {0, 1}),
        (Sampling(seed=0, top_p=0.5), {0}),
        (Sampling(seed=0, top_p=0.51), {0, 1}),
        (Sampling(seed=0, min_p=0.3), {0, 1, 2}),
        (Sampling(seed=0, top_p=1e-9), {0}),
        (Sampling(seed=0, min_p=1.0), {0}),
        (Sampling(seed=0, top_k=1_000_000), {0, 1, 2, 3}),
        # Top-p counts the mass that top-k left: 0.5 and 0.25 become 2/3 and 1/3.
        (Sampling(seed=0, top_k=2, top_p=0.6), {0}),
        (Sampling(seed=0, top_p=0.0), {0}),
        (Sampling(seed=0, top_k=3, top_p=0.0), {0}),
        # All that top-k left, and nothing behind it.
        (Sampling(seed=0, top_k=2, top_p=1 - 2**-24), {0, 1}),
    ],
)
def test_filters_keep_what_their_definition_says(sampling: Sampling, kept: set[int]) -> None:
    logits = mx.log(mx.array([[0.5, 0.25, 0.16, 0.09]]))
    [row] = Thresholds([sampling], 4).apply(logits).tolist()  # type: ignore[misc,union-attr]
    assert {i for i, value in enumerate(row) if value != float("-inf")} == kept


@pytest.mark.parametrize("company", [[], [Sampling(seed=1, top_k=70)], [Sampling(seed=1)]])
@pytest.mark.parametrize(
    ("sampling", "logits", "kept"),
    [
        # What is as likely as the last one that is kept, is kept.
        (Sampling(seed=0, top_k=1), [3.0, 1.0, 3.0, -math.inf], {0, 2}),
        (Sampling(seed=0, top_p=0.1), [1.0, 3.0, 3.0, 3.0], {1, 2, 3}),
        # One is forced.
        (Sampling(seed=0, top_k=3, top_p=0.9), [-math.inf, -math.inf, -80.0, -math.inf], {2}),
        (Sampling(seed=0, top_p=0.9), [-math.inf, -math.inf, 1e30, -math.inf], {2}),
        (Sampling(seed=0, top_k=2), [-1e30, 1e30, -math.inf, -3e38], {0, 1}),
    ],
)
def test_filters_of_equal_and_extreme_logits(
    sampling: Sampling, logits: list[float], kept: set[int], company: list[Sampling]
) -> None:
    rows = mx.array([logits] * (1 + len(company)))
    row: Any = Thresholds([sampling, *company], 4).apply(rows)[0].tolist()
    assert {i for i, value in enumerate(row) if value != -math.inf} == kept


def test_numbers_made_ahead_are_those_of_each_token() -> None:
    """The third row's come after one that it decides by."""
    seeds, at = [1, 2**64 - 1, 7], [0, 30, 2**40]
    numbers = RandomNumbers(seeds, [False, False, True])
    # Across what is made at once, and back, and not all alike.
    for step in [*range(70), 3, 1000]:
        positions = [first + step + (which if step == 3 else 0) for which, first in enumerate(at)]
        keys = [mx.random.key((mix(seed) + position) % 2**64) for seed, position in zip(seeds, positions, strict=True)]
        after, before = mx.random.split(keys[2])
        drawn, decisions = numbers.at(positions)
        assert decisions is not None
        assert decisions[2].item() == mx.random.uniform(key=before).item()
        expected = [mx.random.uniform(key=key).item() for key in (*keys[:2], after)]
        assert drawn[:, 0].tolist() == expected


@pytest.mark.parametrize("width", [7, 1024, WIDE])
@pytest.mark.parametrize("count", [1, 20, FEW, FEW + 1])
def test_the_largest_are_those_of_a_sort(width: int, count: int) -> None:
    count = min(count, width)
    rows = mx.random.normal((3, width), key=mx.random.key(width))
    rows = mx.where(rows < 1.5, -mx.inf, rows)
    expected = -mx.sort(-rows, axis=-1)[:, :count]
    assert mx.array_equal(largest(rows, count), expected[:, ::-1])
    found = indices_of_largest(rows, count)
    assert mx.array_equal(mx.take_along_axis(rows, found, axis=-1), expected)
    assert int(found.max().item()) < width


@pytest.mark.parametrize("width", [448, 50_000])
def test_a_draw_by_rows_is_that_of_mlx_for_each_row(width: int) -> None:
    logits = mx.random.normal((40, width), key=mx.random.key(1)) * 3
    logits = mx.where(logits < mx.arange(40)[:, None] / 20, -mx.inf, logits)
    keys = mx.stack([mx.random.key(seed * 2**40 + seed) for seed in range(40)])
    each = [mx.random.categorical(logits[i : i + 1], key=keys[i])[0] for i in range(40)]
    numbers = compat.numbers_by_keys(keys[:, None])
    assert compat.draw_by_rows(logits, numbers).tolist() == mx.stack(each).tolist()


def test_the_largest_random_number_draws_nothing_that_is_ruled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "uniform_by_keys", lambda keys: mx.ones(keys.shape[:2]))
    logits = mx.array([[-mx.inf, 0.0, 0.0, -mx.inf, -mx.inf]])
    numbers, _ = RandomNumbers([0], [False]).at([0])
    assert compat.draw_by_rows(logits, numbers).tolist() == [2]


def reference_draw(logprobs: mx.array, sampling: Sampling, position: int) -> int:
    """One row by the definitions."""
    if sampling.temperature < 1e-5:
        return int(mx.argmax(logprobs).item())
    key = mx.random.key((mix(sampling.seed) + position) % 2**64)
    logits = logprobs * (1 / sampling.temperature)
    values: list[float] = sorted(logits.tolist(), reverse=True)  # type: ignore[arg-type]
    kept = values[: sampling.top_k] if 0 < sampling.top_k < len(values) else values
    total, mass, top = math.fsum(math.exp(v - values[0]) for v in kept), 0.0, []
    for value in kept:
        if mass < sampling.top_p:
            top.append(value)
        mass += math.exp(value - values[0]) / total
    threshold = top[-1]
    if sampling.min_p > 0:
        threshold = max(threshold, values[0] + math.log(sampling.min_p))
    logits = mx.where(logits < threshold - 1e-6, -mx.inf, logits)
    if sampling.xtc_probability > 0:
        key, other = mx.random.split(key)
        if float(mx.random.uniform(key=other).item()) < sampling.xtc_probability:  # type: ignore[arg-type]
            probabilities = mx.softmax(logits)
            likely = [p for p in probabilities.tolist() if p >= sampling.xtc_threshold]  # type: ignore[union-attr,operator]
            if likely:
                logits = mx.where(probabilities > min(likely) + 1e-7, -mx.inf, logits)
    return int(mx.random.categorical(logits[None], key=key).item())


def samplings(count: int) -> list[Sampling]:
    draw = random.Random(5)
    return [
        Sampling(
            seed=draw.randrange(2**64),
            temperature=draw.choice([0.0, 0.3, 1.0, 1.7]),
            top_k=draw.choice([0, 0, 1, 20, 64, 65, 200, 10**6]),
            top_p=draw.choice([1.0, 1.0, 0.9, 0.3]),
            min_p=draw.choice([0.0, 0.0, 0.05]),
            xtc_probability=draw.choice([0.0, 0.0, 0.5]),
            xtc_threshold=draw.choice([0.02, 0.1]),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("width", [448, WIDE])
def test_every_row_of_any_company_draws_by_the_definitions_and_as_it_does_alone(width: int) -> None:
    rows = samplings(24)
    logits = mx.random.normal((24, width), key=mx.random.key(2)) * 4
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    company = Sampler(rows, width)
    for position in (0, 1, 1000):
        together = company.draw(logprobs, [position] * 24).tolist()
        alone = [Sampler([row], width).draw(logprobs[i : i + 1], [position])[0] for i, row in enumerate(rows)]
        assert together == mx.stack(alone).tolist()
        assert together == [reference_draw(logprobs[i], row, position) for i, row in enumerate(rows)]
