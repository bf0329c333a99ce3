"""The fit is pure: machines here are two numbers, with noise, hiccups and a change of mind."""

from __future__ import annotations

import random

import pytest

from server.engine.linear_cost import LinearCost

# Seconds a forward pass takes whatever its tokens, and for each of them: M4 Max, M2 Pro, M1.
MACHINES = [(0.022, 0.0006), (0.060, 0.0036), (0.176, 0.0054)]
SIZES = (256, 2048, 1200, 700)


@pytest.mark.parametrize(("fixed_s", "unit_s"), MACHINES)
def test_both_parts_are_found_whatever_the_noise(fixed_s: float, unit_s: float) -> None:
    rng = random.Random(1)
    cost = LinearCost()
    for index in range(40):
        size = SIZES[index % len(SIZES)]
        cost.record(size, (fixed_s + size * unit_s) * rng.uniform(0.97, 1.03))
    for size in (128, 1000, 4000):
        assert cost.seconds(size) == pytest.approx(fixed_s + size * unit_s, rel=0.15)
        assert cost.units(fixed_s + size * unit_s) == pytest.approx(size, rel=0.3)


@pytest.mark.parametrize(("fixed_s", "unit_s"), MACHINES)
def test_the_short_ends_of_prompts_spoil_nothing(fixed_s: float, unit_s: float) -> None:
    cost = LinearCost()
    for index in range(200):
        size = SIZES[index // 20 % 4] if index % 20 == 0 else 4
        # Below 64 tokens another kernel reads an expert's weights for each token anew.
        cost.record(size, fixed_s + size * unit_s if size > 64 else 3 * fixed_s)
    assert cost.seconds(1000) == pytest.approx(fixed_s + 1000 * unit_s, rel=0.15)


def test_a_hiccup_does_little_and_a_machine_that_became_slower_is_believed() -> None:
    cost = LinearCost()
    for size in SIZES * 4:
        cost.record(size, 0.06 + size * 0.004)
    before = cost.seconds(1000)
    cost.record(1200, 60.0)
    assert cost.seconds(1000) < 2 * before
    for size in SIZES * 3:
        cost.record(size, 3 * (0.06 + size * 0.004))
    assert cost.seconds(1000) == pytest.approx(3 * 4.06, rel=0.15)


def test_of_one_size_alone_that_size_is_predicted() -> None:
    cost = LinearCost()
    for _ in range(5):
        cost.record(500, 2.0)
    assert cost.seconds(500) == pytest.approx(2.0)
    for _ in range(10):
        cost.record(500, 3.0)
    assert cost.seconds(500) == pytest.approx(3.0, rel=0.05)


def test_nothing_is_known_before_anything_was_measured() -> None:
    cost = LinearCost()
    assert not cost.known
    assert (cost.seconds(10), cost.units(10)) == (0.0, float("inf"))


def test_neither_part_is_ever_negative() -> None:
    rng = random.Random(2)
    cost = LinearCost()
    for _ in range(500):
        cost.record(rng.randrange(1, 3000), rng.uniform(0.001, 3))
        assert cost.seconds(0) >= 0
        assert cost.seconds(5000) >= cost.seconds(1) >= 0
