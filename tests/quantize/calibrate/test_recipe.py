"""The recipe on correlated activations, judged on tokens that it never saw."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce

import mlx.core as mx
import numpy as np
import pytest

from quantize.calibrate.guard import HeldBack, choose, hold_back, merge_held_back, output_error
from quantize.calibrate.prepared import prepare
from quantize.calibrate.recipe import Solved, solve
from quantize.calibrate.settings import RECIPE, WEIGHTED, SolverSettings
from quantize.calibrate.statistics import measure, merge
from quantize.folder.quant_spec import QuantSpec
from tests.support.activations import Layer, correlated_layer

SETTINGS = SolverSettings()
ROWS, COLUMNS = 96, 128


def held(layer: Layer) -> dict[str, HeldBack]:
    return {"prose": hold_back(layer.weight, layer.held_inputs, layer.held_full)}


def solved(layer: Layer, bits: int = 2) -> Solved:
    return solve(
        layer.weight, prepare([measure(layer.inputs, layer.full)], SETTINGS), [held(layer)], QuantSpec(bits), SETTINGS
    )


def true_error(layer: Layer, weight: mx.array, gains: np.ndarray | float = 1.0) -> float:
    """From the held-back tokens themselves, in float64; each output times its gain."""
    wanted = np.array(layer.held_full, dtype=np.float64) @ np.array(layer.weight.astype(mx.float32)).T
    given = np.array(layer.held_inputs, dtype=np.float64) @ np.array(weight.astype(mx.float32)).T
    return float(((gains * (wanted - given)) ** 2).sum() / ((gains * wanted) ** 2).sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_recipe_beats_weighted_grids_beats_rounding(bits: int) -> None:
    layer = correlated_layer(ROWS, COLUMNS, 25 * COLUMNS)
    [report] = solved(layer, bits).reports
    errors = report.errors["prose"]
    assert report.chosen == RECIPE
    assert errors["recipe"] < errors["weighted"] < errors["rounding"]
    assert report.ratio == pytest.approx(errors["recipe"] / errors["rounding"])


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Cycles stay, as for hours in a process that makes few objects and large arrays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_nothing_but_what_is_returned_stays_in_memory() -> None:
    layer = correlated_layer(ROWS, COLUMNS, 25 * COLUMNS)
    inputs, judged = prepare([measure(layer.inputs, layer.full)], SETTINGS), [held(layer)]
    mx.eval([of.arrays for kinds in judged for of in kinds.values()])
    before = mx.get_active_memory()
    found = solve(layer.weight, inputs, judged, QuantSpec(2), SETTINGS)
    assert mx.get_active_memory() - before <= 2 * (found.weight.nbytes + found.scales.nbytes + found.biases.nbytes)


def test_what_is_returned_is_what_was_judged() -> None:
    layer = correlated_layer(ROWS, COLUMNS, 25 * COLUMNS)
    found = solved(layer)
    assert (found.weight.dtype, found.scales.dtype, found.biases.dtype) == (mx.uint32, mx.bfloat16, mx.bfloat16)
    assert [array.shape for array in (found.weight, found.scales, found.biases)] == [(96, 8), (96, 2), (96, 2)]
    scales, biases = found.scales.astype(mx.float32), found.biases.astype(mx.float32)
    weight = mx.dequantize(found.weight, scales, biases, group_size=64, bits=2)
    [report] = found.reports
    assert true_error(layer, weight) == pytest.approx(report.errors["prose"][report.chosen], rel=1e-3)


def row_error(layer: Layer, weight: mx.array, row: int) -> float:
    part = replace(layer, weight=layer.weight[row : row + 1])
    return true_error(part, weight[row : row + 1])


def test_a_starved_expert_is_not_worse_than_weighted_grids() -> None:
    layer = correlated_layer(ROWS, COLUMNS, 3 * COLUMNS)
    [report] = solved(layer).reports
    assert report.damping == 1.0
    assert report.errors["prose"]["recipe"] <= report.errors["prose"]["weighted"]


def test_eight_bits_are_never_worse_than_rounding() -> None:
    [report] = solved(correlated_layer(ROWS, COLUMNS, 25 * COLUMNS), bits=8).reports
    assert report.ratio <= 1.0


def test_the_stream_error_of_the_layers_before_is_made_up_for() -> None:
    layer = correlated_layer(ROWS, COLUMNS, 25 * COLUMNS)
    rng = np.random.default_rng(5)
    bend = mx.array((rng.normal(size=(COLUMNS, ROWS)) * 0.02).astype(np.float32))
    stream, held_stream = layer.inputs @ bend, layer.held_inputs @ bend
    kinds = {"prose": hold_back(layer.weight, layer.held_inputs, layer.held_full, held_stream)}
    blind, told = (
        solve(layer.weight, prepare([one], SETTINGS), [kinds], QuantSpec(3), SETTINGS)
        .reports[0]
        .errors["prose"]["recipe"]
        for one in (measure(layer.inputs, layer.full), measure(layer.inputs, layer.full, stream))
    )
    assert told < 0.5 * blind


def test_experts_are_solved_together_each_with_its_own_report() -> None:
    layers = [correlated_layer(32, 128, tokens * 128, seed=seed) for seed, tokens in enumerate((30, 3))]
    statistics = [measure(layer.inputs, layer.full) for layer in layers]
    statistics.append(measure(mx.zeros((0, 128))))
    weight = mx.stack([layers[0].weight, layers[1].weight, layers[1].weight])
    kinds = [held(layers[0]), held(layers[1]), {}]
    found = solve(weight, prepare(statistics, SETTINGS, reduce(merge, statistics)), kinds, QuantSpec(2), SETTINGS)
    assert found.weight.shape == (3, 32, 8)
    assert [report.tokens for report in found.reports] == [3840, 384, 0]
    assert [report.damping for report in found.reports] == [pytest.approx(0.1), 1.0, 1.0]
    # No token chose the third: nothing to judge it by, and its grids are weighted by what the others saw.
    assert (found.reports[2].chosen, found.reports[2].errors, found.reports[2].ratio) == (WEIGHTED, {}, 1.0)
    assert bool(mx.isfinite(found.scales).all())


def test_the_same_input_gives_the_same_bytes() -> None:
    layer = correlated_layer(ROWS, COLUMNS, 8 * COLUMNS)
    first, second = solved(layer), solved(layer)
    for part in ("weight", "scales", "biases"):
        one, other = getattr(first, part), getattr(second, part)
        assert bytes(memoryview(one.view(mx.uint8))) == bytes(memoryview(other.view(mx.uint8)))
    assert first.reports == second.reports


def test_rows_with_the_same_inputs_may_be_stacked() -> None:
    """Another number of rows may add up in another order, and tip codes where two are as good: on which rows differs
    from processor to processor. No row is worse for it."""
    layer = correlated_layer(ROWS, COLUMNS, 8 * COLUMNS)
    inputs = prepare([measure(layer.inputs, layer.full)], SETTINGS)
    whole = solve(layer.weight, inputs, [{}], QuantSpec(2), SETTINGS)
    part = solve(layer.weight[:32], inputs, [{}], QuantSpec(2), SETTINGS)
    first, alone = (
        mx.dequantize(one.weight[:32], one.scales[:32], one.biases[:32], 64, 2).astype(mx.float32)
        for one in (whole, part)
    )
    errors = [[row_error(layer, weight, row) for row in range(32)] for weight in (first, alone)]
    np.testing.assert_allclose(*errors, rtol=0.05)
    assert sum(errors[0]) == pytest.approx(sum(errors[1]), rel=0.005)
    assert np.mean(np.array(mx.all(first == alone, axis=1))) > 0.8


def test_what_does_not_belong_together_is_refused() -> None:
    layer = correlated_layer(8, 64, 64)
    with pytest.raises(ValueError, match="1 matrices, 2 statistics"):
        solve(layer.weight, prepare([measure(layer.inputs)] * 2, SETTINGS), [{}], QuantSpec(2), SETTINGS)


# ---- the guard


@pytest.mark.parametrize("count", [1, 2, COLUMNS // 2, COLUMNS // 2 + 1, 2048])
def test_the_held_back_error_is_that_of_the_tokens_few_or_many(count: int) -> None:
    layer = correlated_layer(ROWS, COLUMNS, 1)
    layer = replace(layer, held_inputs=layer.held_inputs[:count], held_full=layer.held_full[:count])
    weight = layer.weight.astype(mx.float32)
    candidate = mx.round(weight * 50) / 50
    # In three parts, so that few tokens meet few, and what has become sums meets few.
    parts = [hold_back(layer.weight, layer.held_inputs[start::3], layer.held_full[start::3]) for start in range(3)]
    together = reduce(merge_held_back, parts)
    assert together.tokens == count
    assert output_error(weight, candidate, together) == pytest.approx(true_error(layer, candidate), rel=1e-3)


@pytest.mark.parametrize("count", [2, COLUMNS // 2 + 1, 2048])
def test_an_output_that_a_norm_makes_small_counts_for_little(count: int) -> None:
    layer = correlated_layer(ROWS, COLUMNS, 1)
    layer = replace(layer, held_inputs=layer.held_inputs[:count], held_full=layer.held_full[:count])
    gains = (10 ** np.random.default_rng(3).uniform(-3, 1, size=ROWS)).astype(np.float32)
    weight = layer.weight.astype(mx.float32)
    # Wrong where it hardly counts.
    candidate = mx.where(mx.array(gains)[:, None] < 0.01, mx.zeros_like(weight), mx.round(weight * 50) / 50)
    parts = [
        hold_back(layer.weight, layer.held_inputs[at::2], layer.held_full[at::2], gains=mx.array(gains))
        for at in range(2)
    ]
    found = output_error(weight, candidate, reduce(merge_held_back, parts))
    assert found == pytest.approx(true_error(layer, candidate, gains), rel=1e-3)
    assert found < 0.2 * true_error(layer, candidate)


def test_the_guard_takes_nothing_that_is_worse_than_rounding_on_a_kind() -> None:
    names = ("recipe", "weighted", "rounding")
    fine = {"recipe": 0.1, "weighted": 0.3, "rounding": 0.5}
    worse = {"recipe": 0.6, "weighted": 0.4, "rounding": 0.5}
    assert choose({"prose": fine}, names) == "recipe"
    assert choose({"prose": fine, "law": worse}, names) == "weighted"
    assert choose({"law": {"recipe": 0.6, "weighted": 0.7, "rounding": 0.5}}, names) == "rounding"


def test_a_recipe_learnt_from_other_text_falls_back() -> None:
    layer = correlated_layer(ROWS, COLUMNS, 25 * COLUMNS)
    stranger = correlated_layer(ROWS, COLUMNS, 2 * COLUMNS, seed=9)
    misled = measure(stranger.inputs, stranger.inputs * 3)
    [report] = solve(layer.weight, prepare([misled], SETTINGS), [held(layer)], QuantSpec(4), SETTINGS).reports
    assert report.chosen != RECIPE
    assert report.ratio <= 1.0
