"""Bit allocation: for every item one of its options, so that the summed loss is least within a byte budget.

The items are separate: the loss of a choice is taken not to depend on the others. Items that must share one width (gate
and up of a layer, which runtimes fuse) are tied into one before.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantize.folder.quant_spec import QuantSpec


@dataclass(frozen=True, slots=True)
class Option:
    spec: QuantSpec | None
    nbytes: int
    loss: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """`bound`: no choice within the budget has a smaller loss; the gap to `loss` is the most that is left to win."""

    choice: Mapping[str, Option]
    nbytes: int
    loss: float
    bound: float


class BudgetTooSmall(ValueError):
    """`least`: the bytes of the smallest choice there is."""

    def __init__(self, budget: int, least: int) -> None:
        super().__init__(f"{budget} bytes are fewer than the smallest choice takes, which is {least}.")
        self.least = least


def tied(items: Sequence[Sequence[Option]]) -> list[Option]:
    """One item for several that take the same spec: bytes and losses added, specs that all of them offer."""
    tables = [{option.spec: option for option in item} for item in items]
    shared = [spec for spec in tables[0] if all(spec in table for table in tables)]
    if not shared:
        raise ValueError("The tied items have no spec in common.")
    return [Option(spec, sum(t[spec].nbytes for t in tables), sum(t[spec].loss for t in tables)) for spec in shared]


def allocate(items: Mapping[str, Sequence[Option]], budget: int) -> Allocation:
    """The choice within `budget` bytes. Raises BudgetTooSmall.

    Each item walks up its convex hull, the steepest fall in loss for a byte first: optimal wherever the budget ends at
    a step. What the last step leaves is spent on single exchanges, each the best that still fits.
    """
    hulls = {name: _hull(options) for name, options in sorted(items.items())}
    place = dict.fromkeys(hulls, 0)
    used = sum(hull[0].nbytes for hull in hulls.values())
    if used > budget:
        raise BudgetTooSmall(budget, used)
    loss = sum(hull[0].loss for hull in hulls.values())
    bound = None
    steps = [(-_slope(hull, 0), name) for name, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        slope, name = heapq.heappop(steps)
        hull, at = hulls[name], place[name]
        extra = hull[at + 1].nbytes - hull[at].nbytes
        if used + extra > budget:
            # The first step that does not fit, taken in part, is the optimum of the relaxed problem.
            bound = loss + slope * (budget - used) if bound is None else bound
            continue
        used, loss, place[name] = used + extra, loss + hull[at + 1].loss - hull[at].loss, at + 1
        if at + 2 < len(hull):
            heapq.heappush(steps, (-_slope(hull, at + 1), name))
    choice = _exchanged({name: hulls[name][at] for name, at in place.items()}, items, budget)
    total = sum(option.loss for option in choice.values())
    return Allocation(choice, sum(o.nbytes for o in choice.values()), total, total if bound is None else bound)


def _hull(options: Sequence[Option]) -> list[Option]:
    """The lower convex hull of loss over bytes, from the smallest option to the one of least loss."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda o: (o.nbytes, o.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _fall(hull[-2], option) >= _fall(hull[-2], hull[-1]):
            hull.pop()
        hull.append(option)
    return hull


def _fall(smaller: Option, larger: Option) -> float:
    """Loss saved for each byte added."""
    return (smaller.loss - larger.loss) / (larger.nbytes - smaller.nbytes)


def _slope(hull: Sequence[Option], at: int) -> float:
    return _fall(hull[at], hull[at + 1])


def _exchanged(choice: dict[str, Option], items: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """`choice` after the best change of one item, or of two at once, as long as one lowers the loss and fits."""
    while True:
        spare = budget - sum(option.nbytes for option in choice.values())
        single = [
            (option.loss - choice[name].loss, option.nbytes - choice[name].nbytes, name, option)
            for name, options in sorted(items.items())
            for option in options
            if option != choice[name]
        ]
        best: tuple[float, list[tuple[str, Option]]] = (0.0, [])
        for gain, extra, name, option in single:
            if extra <= spare and gain < best[0]:
                best = (gain, [(name, option)])
        for gain, extra, name, option in single:
            if gain + min((other[0] for other in single), default=0.0) >= best[0]:
                continue
            for other_gain, other_extra, other_name, other in single:
                if other_name != name and extra + other_extra <= spare and gain + other_gain < best[0]:
                    best = (gain + other_gain, [(name, option), (other_name, other)])
        if not best[1]:
            return choice
        choice = choice | dict(best[1])
