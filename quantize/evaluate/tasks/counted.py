"""How far a task is, told by what it asks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeVar

# What is being done, how much of how much of it is.
EvaluationProgress = Callable[[str, int, int], None]
T = TypeVar("T")


def counted(ask: Callable[..., T], what: str, total: int, told: EvaluationProgress) -> Callable[..., T]:
    """`ask`, with every call of it told before it is made."""
    numbers = itertools.count(1)

    def asking(*given: object) -> T:
        told(what, next(numbers), total)
        return ask(*given)

    return asking
