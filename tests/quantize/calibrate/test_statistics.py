"""Statistics add up, and lean on the layer where an expert saw little."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from quantize.calibrate.statistics import Statistics, Sums, measure, merge, shrunk
from tests.support.activations import correlated_layer

COLUMNS = 32


@pytest.fixture(scope="module")
def tokens() -> tuple[mx.array, mx.array, mx.array]:
    layer = correlated_layer(8, COLUMNS, 96)
    stream = mx.array(np.random.default_rng(0).normal(size=(96, 8)).astype(np.float32))
    return layer.inputs, layer.full, stream


def close(first: Statistics, second: Statistics) -> bool:
    assert first.stream is not None and second.stream is not None
    return first.tokens == second.tokens and all(
        bool(mx.allclose(one, other, rtol=1e-4, atol=1e-3))
        for one, other in [
            (first.hessian, second.hessian),
            (first.drift, second.drift),
            (first.stream, second.stream),
        ]
    )


def test_parts_merge_to_the_whole(tokens: tuple[mx.array, mx.array, mx.array]) -> None:
    whole = measure(*tokens)
    parts = [measure(*(array[start:stop] for array in tokens)) for start, stop in ((0, 40), (40, 40), (40, 96))]
    assert close(merge(merge(parts[0], parts[1]), parts[2]), whole)


@pytest.mark.parametrize("rows", [1, 40, 2000])
def test_what_comes_a_few_rows_at_a_time_sums_up_to_the_whole(
    tokens: tuple[mx.array, mx.array, mx.array], rows: int
) -> None:
    many = [mx.concatenate([array] * 25) for array in tokens]
    sums = Sums()
    for start in range(0, len(many[0]), rows):
        sums.add(*(array[start : start + rows] for array in many))
    assert close(sums.total(), measure(*many))
    assert sum(array.nbytes for array in sums.arrays) == 4 * (2 * COLUMNS + 8) * COLUMNS


def test_an_expert_that_no_token_chose_has_sums_of_zeros(tokens: tuple[mx.array, mx.array, mx.array]) -> None:
    sums = Sums()
    sums.add(tokens[0][:0], tokens[1][:0])
    assert sums.total().tokens == 0
    assert float(mx.abs(sums.total().hessian).max()) == 0


def test_the_sums_are_what_they_are_called(tokens: tuple[mx.array, mx.array, mx.array]) -> None:
    inputs, full, stream = (np.array(array, dtype=np.float64) for array in tokens)
    found = measure(*tokens)
    assert found.stream is not None
    assert np.allclose(np.array(found.hessian), inputs.T @ inputs, rtol=1e-4, atol=1e-3)
    assert np.allclose(np.array(found.drift), (full - inputs).T @ inputs, rtol=1e-3, atol=1e-3)
    assert np.allclose(np.array(found.stream), stream.T @ inputs, rtol=1e-3, atol=1e-3)
    assert (found.tokens, found.tokens_per_dimension) == (96, 3.0)


def test_one_stream_has_no_drift(tokens: tuple[mx.array, mx.array, mx.array]) -> None:
    assert float(mx.abs(measure(tokens[0]).drift).max()) == 0


def test_a_matrix_with_a_stream_error_merges_with_none_without(
    tokens: tuple[mx.array, mx.array, mx.array],
) -> None:
    with pytest.raises(ValueError, match="stream error"):
        merge(measure(*tokens), measure(*tokens[:2]))


def test_rare_experts_lean_on_the_layer_and_busy_ones_do_not() -> None:
    pool = Statistics(1000.0 * mx.eye(COLUMNS), mx.zeros((COLUMNS, COLUMNS)), 1000)

    def expert(tokens: int) -> Statistics:
        return Statistics(3.0 * tokens * mx.eye(COLUMNS), mx.zeros((COLUMNS, COLUMNS)), tokens)

    def per_token(tokens: int) -> float:
        return float(shrunk(expert(tokens), pool, 1.0).hessian[0, 0]) / tokens

    assert per_token(1) == pytest.approx(1.0, abs=0.1)
    assert per_token(COLUMNS) == pytest.approx(2.0)
    assert per_token(100 * COLUMNS) == pytest.approx(3.0, abs=0.1)


def test_an_expert_that_no_token_chose_has_the_layers_hessian() -> None:
    pool = measure(correlated_layer(4, COLUMNS, 64).inputs)
    nothing = measure(mx.zeros((0, COLUMNS)))
    assert mx.allclose(shrunk(nothing, pool, 1.0).hessian, pool.hessian / 64)
    assert shrunk(nothing, nothing, 1.0) is nothing


def test_the_drift_follows_the_hessian_toward_the_layer() -> None:
    pool = Statistics(1000.0 * mx.eye(COLUMNS), 500.0 * mx.eye(COLUMNS), 1000)
    expert = Statistics(COLUMNS * mx.eye(COLUMNS), mx.zeros((COLUMNS, COLUMNS)), COLUMNS)
    assert float(shrunk(expert, pool, 1.0).drift[0, 0]) / COLUMNS == pytest.approx(0.25)
