"""What a measurement says of the two sides: ratios, targets, medians, answers that differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.result import Curve, Figure, Measured, Result, Target, median_of, read, same_answers, write


def test_a_ratio_is_configis_figure_by_the_others() -> None:
    assert Figure("", "s", 4.0, 1.0).ratio == 0.25
    assert Figure("", "s", None, 1.0).ratio is None


def test_a_target_holds_for_the_ratio_or_for_the_figure_itself(result: Callable[..., Result]) -> None:
    assert [figure.met for figure in result(gap=1.0, share=0.9).figures] == [True, True]
    assert [figure.met for figure in result(gap=1.1, share=0.8).figures] == [False, False]
    assert not result(gap=1.0, share=0.8).met


def test_a_figure_that_nobody_else_has_is_neither_met_nor_missed() -> None:
    assert Figure("", "s", None, 1.0, Target(0.1)).met is None


def test_the_ratio_is_to_the_best_of_the_others_whoever_that_is() -> None:
    gap = Figure("", "s", 4.0, 1.0, Target(0.8), {"Rapid-MLX": 1.0, "vllm-mlx": 0.0})
    rate = Figure("", "tok/s", 40.0, 50.0, Target(1.05, True), {"Rapid-MLX": 50.0}, more_is_better=True)
    assert [(f.best, f.ratio, f.met) for f in (gap, rate)] == [(1.0, 1.0, False), (50.0, 1.0, False)]


def test_repetitions_count_by_their_median() -> None:
    turns = [Measured({"x": x}, (str(x),), {"curve": ((1, x), (2, x))}) for x in (3.0, 1.0, 2.0)]
    assert median_of(turns) == Measured({"x": 2.0}, ("3.0", "1.0", "2.0"), {"curve": ((1, 2.0), (2, 2.0))})


def test_answers_that_differ_are_counted() -> None:
    assert same_answers(Measured({}, ("a", "b")), Measured({}, ("a", "c"))) == 1


def test_a_space_before_the_first_word_is_no_difference() -> None:
    # mlx-lm's streams drop it, whatever the tokenizer says.
    assert same_answers(Measured({}, ("a b", "a b")), Measured({}, (" a b", "a  b"))) == 1


def test_a_result_is_read_as_it_was_written(tmp_path: Path, result: Callable[..., Result]) -> None:
    curves = (Curve("stall", "t", "x", "y", {"configi": ((0.0, 1.0), (1.5, 2.0))}),)
    made = replace(result(gap=1.0, share=1.0), notes=("a note",), curves=curves)
    assert read(write(made, tmp_path)) == made
