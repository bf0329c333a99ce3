"""Each solver against a closed form, or against the one that it claims to improve on."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations_with_replacement, pairwise

import mlx.core as mx
import numpy as np
import pytest

from quantize.calibrate.descent import Descent
from quantize.calibrate.gptq import gptq
from quantize.calibrate.grids import Quantized, nearest, rounding, spread, weighted_least_squares
from quantize.calibrate.hessian import damped, damping, inverse_root
from quantize.calibrate.packing import pack, unpack
from quantize.calibrate.statistics import measure
from quantize.calibrate.target import corrected
from quantize.folder.quant_spec import BITS, QuantSpec
from quantize.forward import products
from tests.support.activations import correlated_layer

ROWS, COLUMNS = 48, 256


@pytest.fixture(scope="module")
def weight() -> mx.array:
    return correlated_layer(ROWS, COLUMNS, 1).weight[None]


@pytest.fixture(scope="module")
def hessian() -> mx.array:
    one = measure(correlated_layer(ROWS, COLUMNS, 2048).inputs)
    return damped(one.hessian[None], mx.array([0.1]))


def start(weight: mx.array, hessian: mx.array, bits: int = 2) -> Quantized:
    diagonal = mx.diagonal(hessian, axis1=-2, axis2=-1)
    return weighted_least_squares(weight.astype(mx.float32), diagonal, rounding(weight, QuantSpec(bits)))


def total(target: mx.array, hessian: mx.array, now: Quantized) -> float:
    """In float64, so that it judges what was computed in float32."""
    error = np.array(target, dtype=np.float64) - np.array(now.weight, dtype=np.float64)
    return float(np.einsum("eri,eij,erj->", error, np.array(hessian, dtype=np.float64), error))


def test_the_root_is_of_the_inverse(hessian: mx.array) -> None:
    root = np.array(inverse_root(hessian)[0], dtype=np.float64)
    assert np.array_equal(root, np.triu(root))
    assert np.allclose(root.T @ root @ np.array(hessian[0], dtype=np.float64), np.eye(COLUMNS), atol=1e-4)


@pytest.mark.parametrize(("tokens", "share"), [(0, 1.0), (4.9, 1.0), (25, 0.1), (200, 0.1)])
def test_damping_is_that_of_the_recipe_at_its_ends(tokens: float, share: float) -> None:
    assert damping(tokens) == pytest.approx(share)


def test_damping_falls_from_one_end_to_the_other() -> None:
    between = [damping(tokens) for tokens in (5, 8, 12, 18, 25)]
    assert between == sorted(between, reverse=True)


def test_a_hessian_of_no_token_becomes_the_identity() -> None:
    assert mx.array_equal(damped(mx.zeros((1, 4, 4)), mx.array([1.0]))[0], mx.eye(4))


def test_a_target_without_error_is_the_weight(weight: mx.array, hessian: mx.array) -> None:
    float_weight = weight.astype(mx.float32)
    no_stream = mx.zeros_like(float_weight)
    for stream in (None, no_stream):
        target = corrected(float_weight, mx.zeros((1, COLUMNS, COLUMNS)), stream, inverse_root(hessian))
        assert mx.array_equal(target, float_weight)


def test_the_target_is_the_least_squares_solution() -> None:
    layer = correlated_layer(ROWS, 64, 512)
    rng = np.random.default_rng(1)
    stream = rng.normal(size=(512, ROWS)).astype(np.float32)
    one = measure(layer.inputs, layer.full, mx.array(stream))
    weight = layer.weight.astype(mx.float32)
    root = inverse_root(damped(one.hessian[None], mx.array([0.0])))
    assert one.stream is not None
    target = corrected(weight[None], one.drift[None], one.stream[None], root)[0]
    # The same by numpy, from the tokens themselves.
    wanted = np.array(layer.full) @ np.array(weight).T + stream
    solution, *_ = np.linalg.lstsq(np.array(layer.inputs), wanted, rcond=None)
    assert np.allclose(np.array(target), solution.T, atol=1e-3)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_packing_is_that_of_mlx(weight: mx.array, bits: int, group_size: int) -> None:
    spec = QuantSpec(bits, group_size)
    packed, scales, biases = mx.quantize(weight, group_size=group_size, bits=bits)
    codes = unpack(packed, spec)
    assert int(codes.max()) == 2**bits - 1
    assert mx.array_equal(pack(codes, spec), packed)
    # mx.dequantize reads what was packed as scale * code + bias.
    floats = mx.dequantize(
        packed, scales.astype(mx.float32), biases.astype(mx.float32), group_size=group_size, bits=bits
    )
    expected = spread(scales.astype(mx.float32), spec) * codes + spread(biases.astype(mx.float32), spec)
    assert mx.array_equal(floats, expected) or float(mx.abs(floats - expected).max()) < 1e-7


@pytest.mark.parametrize("bits", BITS)
def test_every_code_survives_mx_dequantize_bit_for_bit(bits: int) -> None:
    spec = QuantSpec(bits)
    codes = mx.array(np.random.default_rng(bits).integers(0, 2**bits, size=(3, 8, 192)))
    ones, zeros = mx.ones((3, 8, 3)), mx.zeros((3, 8, 3))
    assert mx.array_equal(mx.dequantize(pack(codes, spec), ones, zeros, group_size=64, bits=bits), codes)


def test_rounding_has_the_bytes_of_mx_quantize(weight: mx.array) -> None:
    spec = QuantSpec(3)
    now = rounding(weight, spec)
    packed, scales, biases = mx.quantize(weight, group_size=64, bits=3)
    assert mx.array_equal(pack(now.codes, spec), packed)
    assert mx.array_equal(now.scales.astype(mx.bfloat16), scales)
    assert mx.array_equal(now.biases.astype(mx.bfloat16), biases)


@pytest.mark.parametrize("bits", BITS)
def test_least_squares_grids_are_never_worse_than_rounding_in_any_group(weight: mx.array, bits: int) -> None:
    weights = mx.array(np.random.default_rng(0).exponential(size=(1, COLUMNS)).astype(np.float32) ** 3)
    rounded = rounding(weight, QuantSpec(bits))
    fitted = weighted_least_squares(weight.astype(mx.float32), weights, rounded)

    def errors(now: Quantized) -> np.ndarray:
        error = np.array(weights[:, None] * (weight.astype(mx.float32) - now.weight) ** 2, dtype=np.float64)
        return error.reshape(1, ROWS, -1, 64).sum(axis=-1)

    assert np.all(errors(fitted) <= errors(rounded) * (1 + 1e-5))
    assert errors(fitted).sum() < errors(rounded).sum() * (0.8 if bits <= 3 else 1.0)


def test_least_squares_finds_a_grid_that_the_weights_lie_on() -> None:
    codes = mx.array(np.random.default_rng(0).integers(0, 4, size=(1, 8, 64)).astype(np.float32))
    weight = (0.25 * codes - 0.5).astype(mx.bfloat16)
    fitted = weighted_least_squares(weight.astype(mx.float32), mx.ones((1, 64)), rounding(weight, QuantSpec(2)))
    assert mx.array_equal(fitted.weight, weight.astype(mx.float32))


def least_error_of_four_levels(values: np.ndarray, weights: np.ndarray) -> float:
    """Of all grids there are: codes rise with the values, so each choice of three steps among them is a straight line's
    least squares in closed form."""
    order = np.argsort(values)
    values, weights = values[order].astype(np.float64), weights[order].astype(np.float64)
    steps = np.array(list(combinations_with_replacement(range(len(values) + 1), 3)))
    above, valued = (np.concatenate([np.cumsum(of[::-1])[::-1], [0.0]]) for of in (weights, weights * values))
    code, code_value = above[steps].sum(axis=1), valued[steps].sum(axis=1)
    variance = (above[steps] * (1, 3, 5)).sum(axis=1) - code**2 / above[0]
    explained = (code_value - code * valued[0] / above[0]) ** 2 / np.where(variance > 0, variance, np.inf)
    return float((weights * values**2).sum() - valued[0] ** 2 / above[0] - explained.max())


def test_grids_of_two_bits_come_near_the_best_there_are() -> None:
    rng = np.random.default_rng(1)
    weight = mx.array(rng.standard_normal((1, 32, 64)).astype(np.float32)).astype(mx.bfloat16)
    weights = mx.array(np.exp(rng.standard_normal((1, 64))).astype(np.float32))
    target = weight.astype(mx.float32)
    fitted = weighted_least_squares(target, weights, rounding(weight, QuantSpec(2)))
    errors = np.array(weights[:, None] * (target - fitted.weight) ** 2, dtype=np.float64).sum(axis=-1)[0]
    best = np.array([least_error_of_four_levels(row, np.array(weights[0])) for row in np.array(target[0])])
    assert np.all(errors >= best * (1 - 1e-5))
    assert errors.sum() <= 1.1 * best.sum()


def test_grids_are_exact_in_the_dtype_that_is_stored(weight: mx.array, hessian: mx.array) -> None:
    now = Descent.at(weight.astype(mx.float32), hessian, start(weight, hessian)).grids().now
    for part in (now.scales, now.biases):
        assert mx.array_equal(part.astype(mx.bfloat16).astype(mx.float32), part)


def test_gptq_with_no_correlation_is_rounding_on_its_grids(weight: mx.array, hessian: mx.array) -> None:
    grids, target = start(weight, hessian), weight.astype(mx.float32)
    spec = grids.spec
    found = gptq(target, mx.eye(COLUMNS)[None], grids)
    assert mx.array_equal(found.codes, nearest(target, spread(grids.scales, spec), spread(grids.biases, spec), spec))


def test_gptq_is_the_textbook_column_by_column(weight: mx.array, hessian: mx.array) -> None:
    grids, root = start(weight, hessian, 3), inverse_root(hessian)
    values, factor = np.array(weight[0].astype(mx.float32)), np.array(root[0])
    scales, biases = np.array(spread(grids.scales, grids.spec)[0]), np.array(spread(grids.biases, grids.spec)[0])
    expected = np.zeros_like(values)
    for column in range(COLUMNS):
        code = np.clip(np.round((values[:, column] - biases[:, column]) / scales[:, column]), 0, 7)
        error = (values[:, column] - scales[:, column] * code - biases[:, column]) / factor[column, column]
        values[:, column + 1 :] -= np.outer(error, factor[column, column + 1 :])
        expected[:, column] = code
    found = np.array(gptq(weight.astype(mx.float32), root, grids).codes[0])
    # Sums in another order flip a code that lies between two.
    assert np.mean(found == expected) > 0.99


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_descent_never_raises_its_objective(weight: mx.array, hessian: mx.array, bits: int) -> None:
    target = weight.astype(mx.float32)
    descent = Descent.at(target, hessian, gptq(target, inverse_root(hessian), start(weight, hessian, bits)))
    reached = [total(target, hessian, descent.now)]
    for _ in range(3):
        for step in (Descent.grids, Descent.codes):
            descent = step(descent)
            reached.append(total(target, hessian, descent.now))
            assert float(descent.objective.sum()) == pytest.approx(reached[-1], rel=1e-4)
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(reached))
    assert reached[-1] < reached[0] * 0.95


def test_the_objective_is_e_h_e(weight: mx.array, hessian: mx.array) -> None:
    target, now = weight.astype(mx.float32), start(weight, hessian)
    found = float(Descent.at(target, hessian, now).objective.sum())
    assert found == pytest.approx(total(target, hessian, now), rel=1e-4)


def test_descent_ends_where_no_single_code_can_be_better() -> None:
    layer = correlated_layer(4, 64, 512)
    target = layer.weight[None].astype(mx.float32)
    hessian = damped(measure(layer.inputs).hessian[None], mx.array([0.1]))
    descent = Descent.at(target, hessian, start(layer.weight[None], hessian))
    for _ in range(30):
        descent = descent.codes()
    now = descent.now
    least = total(target, hessian, now)
    codes = np.array(now.codes)
    for row in range(4):
        for column in range(64):
            for code in range(4):
                other = codes.copy()
                other[0, row, column] = code
                assert total(target, hessian, replace(now, codes=mx.array(other))) >= least * (1 - 1e-5)


def test_a_refit_recovers_a_grid_that_was_spoiled(hessian: mx.array) -> None:
    codes = mx.array(np.random.default_rng(0).integers(0, 4, size=(1, 8, COLUMNS)).astype(np.float32))
    groups = (1, 8, COLUMNS // 64)
    true = Quantized(codes, mx.full(groups, 0.25), mx.full(groups, -0.5), QuantSpec(2), mx.bfloat16)
    spoiled = replace(true, scales=mx.full(groups, 0.125), biases=mx.full(groups, 0.0))
    descent = Descent.at(true.weight, hessian, spoiled)
    for _ in range(40):
        descent = descent.grids()
    now = descent.now
    assert total(true.weight, hessian, now) < 1e-3 * total(true.weight, hessian, replace(true, scales=now.scales * 0.5))


def test_experts_in_a_batch_are_solved_as_if_alone(hessian: mx.array) -> None:
    layers = [correlated_layer(16, 128, 512, seed=seed) for seed in (1, 2, 3)]
    hessians = damped(mx.stack([measure(layer.inputs).hessian for layer in layers]), mx.array([0.1, 0.3, 1.0]))
    weights = mx.stack([layer.weight for layer in layers])
    together = gptq(weights.astype(mx.float32), inverse_root(hessians), start(weights, hessians))
    for place in range(3):
        one, its = weights[place : place + 1], hessians[place : place + 1]
        alone = gptq(one.astype(mx.float32), inverse_root(its), start(one, its))
        assert np.mean(np.array(together.codes[place] == alone.codes[0])) > 0.99


def test_both_ways_to_multiply_agree(monkeypatch: pytest.MonkeyPatch, hessian: mx.array) -> None:
    rng = np.random.default_rng(0)
    left, right = (mx.array(rng.normal(size=(2, 128, 128)).astype(np.float32)) for _ in range(2))
    answers = []
    for by_numpy in (False, True):
        monkeypatch.setattr(products, "_by_numpy", lambda by_numpy=by_numpy: by_numpy)
        answers.append((products.product(left, right), products.cholesky(hessian), inverse_root(hessian)))
    for one, other in zip(*answers, strict=True):
        assert mx.allclose(one, other, rtol=1e-3, atol=1e-4)
