"""Bits within a byte budget, against every choice there is."""

from __future__ import annotations

import itertools
import random

import pytest

from quantize.calibrate.allocation import Allocation, BudgetTooSmall, Option, allocate, tied
from quantize.folder.quant_spec import QuantSpec


def items(seed: int, count: int = 5, *, convex: bool = True) -> dict[str, list[Option]]:
    rng = random.Random(seed)
    made = {}
    for number in range(count):
        size, weight = rng.randint(50, 2000), rng.random()
        made[f"layer {number}"] = [
            Option(QuantSpec(bits), size * bits, weight * (4.0**-bits if convex else rng.random()))
            for bits in (2, 3, 4, 8)
        ]
    return made


def best(options: dict[str, list[Option]], budget: int) -> float:
    return min(
        sum(option.loss for option in choice)
        for choice in itertools.product(*options.values())
        if sum(option.nbytes for option in choice) <= budget
    )


def budgets(options: dict[str, list[Option]]) -> list[int]:
    least = sum(min(o.nbytes for o in item) for item in options.values())
    most = sum(max(o.nbytes for o in item) for item in options.values())
    return [least, least + 1, *(least + (most - least) * part // 7 for part in range(1, 7)), most, most + 5]


def check(options: dict[str, list[Option]], found: Allocation, budget: int) -> None:
    assert found.choice.keys() == options.keys()
    assert all(found.choice[name] in item for name, item in options.items())
    assert found.nbytes == sum(o.nbytes for o in found.choice.values()) <= budget
    assert found.bound <= found.loss + 1e-12


@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_it_is_at_or_near_the_best_of_all_choices(seed: int, convex: bool) -> None:
    options = items(seed, convex=convex)
    for budget in budgets(options):
        found = allocate(options, budget)
        check(options, found, budget)
        exact = best(options, budget)
        assert found.bound <= exact + 1e-12
        assert exact <= found.loss + 1e-12
        worst = sum(max(o.loss for o in item) for item in options.values())
        assert found.loss <= exact + 0.03 * worst


def test_a_budget_that_ends_at_a_step_is_solved_exactly() -> None:
    options = items(1)
    for budget in budgets(options):
        reached = allocate(options, budget)
        again = allocate(options, reached.nbytes)
        assert again.loss <= best(options, reached.nbytes) + 1e-12 or again.loss == pytest.approx(reached.loss)


def test_no_money_for_anything_says_what_it_would_take() -> None:
    options = items(2)
    least = sum(min(o.nbytes for o in item) for item in options.values())
    assert allocate(options, least).nbytes == least
    with pytest.raises(BudgetTooSmall, match=str(least)) as refused:
        allocate(options, least - 1)
    assert refused.value.least == least


def test_more_bytes_never_lose() -> None:
    options = items(3, count=40)
    losses = [allocate(options, budget).loss for budget in budgets(options)]
    assert losses == sorted(losses, reverse=True)


def test_an_option_that_costs_more_and_gives_less_is_never_taken() -> None:
    good, bad = Option(QuantSpec(3), 10, 1.0), Option(QuantSpec(4), 20, 2.0)
    assert allocate({"a": [good, bad]}, 100).choice == {"a": good}


def test_gate_and_up_keep_one_width() -> None:
    gate = [Option(QuantSpec(2), 10, 4.0), Option(QuantSpec(3), 15, 1.0), Option(QuantSpec(4), 20, 0.5)]
    up = [Option(QuantSpec(2), 10, 2.0), Option(QuantSpec(4), 20, 0.25)]
    assert tied([gate, up]) == [Option(QuantSpec(2), 20, 6.0), Option(QuantSpec(4), 40, 0.75)]
    with pytest.raises(ValueError, match="no spec in common"):
        tied([gate[:1], up[1:]])
