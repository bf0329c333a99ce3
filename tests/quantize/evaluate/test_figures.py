"""The arithmetic of an evaluation, against closed forms and numpy."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from quantize.calibrate.overlap import shared_runs
from quantize.evaluate.divergence import TokenFigures, compare, joined
from quantize.evaluate.loops import find_loop
from quantize.evaluate.summary import summarize


def log(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_the_divergence_of_two_coins_is_the_closed_form() -> None:
    # Logits are free up to a constant.
    reference, candidate = mx.array([log(0.75, 0.25)]) + 3, mx.array([log(0.5, 0.5)]) - 2
    figures = compare(reference, candidate, mx.array([1]))
    assert figures.kl[0] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)
    assert math.exp(figures.reference[0]) == pytest.approx(0.25, abs=1e-6)
    assert math.exp(figures.candidate[0]) == pytest.approx(0.5, abs=1e-6)


def test_a_model_is_no_way_from_itself() -> None:
    logits = mx.random.normal((50, 300), key=mx.random.key(0)) * 5
    figures = compare(logits, logits.astype(mx.float32), mx.zeros(50, dtype=mx.int32))
    assert figures.kl.max() == 0
    assert figures.same_top.min() == 1


def test_what_neither_model_can_say_adds_nothing() -> None:
    logits = mx.array([[0.0, 1.0, -math.inf]])
    assert compare(logits, logits, mx.array([0])).kl[0] == 0


def passage(seed: int, length: int = 40) -> TokenFigures:
    draw = np.random.default_rng(seed)
    kl, reference, candidate = draw.exponential(0.1, length), -draw.exponential(1, length), -draw.exponential(1, length)
    same = draw.integers(0, 2, length)
    return TokenFigures(*(value.astype(np.float32) for value in (kl, same, reference, candidate)))


def test_a_summary_is_what_numpy_says_of_all_tokens() -> None:
    passages = [passage(seed, 20 + seed) for seed in range(8)]
    every, made = joined(passages), summarize(passages)
    assert (made.tokens, made.passages) == (len(every), 8)
    assert made.kl.value == pytest.approx(every.kl.mean(), rel=1e-6)
    assert made.kl_p99.value == pytest.approx(np.percentile(every.kl, 99), rel=1e-6)
    assert made.kl_max == every.kl.max()
    assert made.perplexity.value == pytest.approx(math.exp(-every.candidate.mean()), rel=1e-5)
    difference = np.exp(every.candidate) - np.exp(every.reference)
    assert made.rms_delta_p.value == pytest.approx(math.sqrt((difference**2).mean()), rel=1e-5)
    assert made.kl.low < made.kl.value < made.kl.high
    assert made == summarize(passages)


def test_one_run_of_tokens_alone_has_no_interval() -> None:
    figure = summarize([passage(0)]).kl
    assert figure.low == figure.value == figure.high


@pytest.mark.parametrize("period", [1, 3, 50])
def test_a_loop_at_the_end_is_found_with_its_period(period: int) -> None:
    beginning = list(range(1000, 1300))
    loop = find_loop(beginning + list(range(period)) * (300 // period))
    assert loop is not None
    assert (loop.start, loop.period, loop.repeats) == (300, period, 300 // period)


def test_a_phrase_that_comes_back_is_no_loop() -> None:
    phrase = list(range(30))
    assert find_loop([*range(100, 400), *phrase, *range(500, 540), *phrase]) is None
    assert find_loop([7] * 20) is None
    assert find_loop([]) is None


def test_sixteen_words_in_a_row_are_an_overlap_and_fifteen_are_none() -> None:
    words = [f"word{number}" for number in range(16)]
    judged = "Before. " + ", ".join(words).upper() + " after"
    assert shared_runs([judged], [" ".join(["x", *words, "y"])]) == [" ".join(words)]
    assert shared_runs([judged], [" ".join(words[:15])]) == []


def test_a_script_without_spaces_overlaps_by_its_characters() -> None:
    text = "镇子东头有一家老茶馆门前种着两棵石榴树"
    assert shared_runs([text], ["今天" + text[:16]]) == [" ".join(text[:16])]
