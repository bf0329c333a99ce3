"""Which expert each row of a layer meets: as matrices of experts are called, and recorded in one run for another.

A module of stacked experts is called with x and the number of the expert that each row of x meets, where one row may
meet several. mlx-lm sorts both by expert first when there are many.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx

from quantize.forward.hooks import Hook, hooked


@contextlib.contextmanager
def recorded(modules: Mapping[str, Any]) -> Iterator[dict[str, list[Any]]]:
    """While open, what the `modules` return is gathered, call by call. Of a router's matrix: its choices to come."""
    returned: dict[str, list[Any]] = {path: [] for path in modules}

    def keeper(kept: list[Any]) -> Hook:
        def keep(call: Any, *args: Any, **kwargs: Any) -> Any:
            kept.append(call(*args, **kwargs))
            return kept[-1]

        return keep

    with hooked((module, keeper(returned[path])) for path, module in modules.items()):
        yield returned


@contextlib.contextmanager
def replayed(modules: Mapping[str, Any], returned: Mapping[str, list[Any]]) -> Iterator[None]:
    """While open, the `modules` return what was recorded, in the same order, whatever they are called with.

    Two streams that must send each token to the same experts record the router of one and replay it in the other.
    """

    def answer(rest: Iterator[Any]) -> Hook:
        return lambda call, *args, **kwargs: next(rest)

    with hooked((module, answer(iter(returned[path]))) for path, module in modules.items()):
        yield


def by_expert(x: mx.array, indices: mx.array) -> tuple[mx.array, mx.array]:
    """What a matrix of stacked experts is called with, as rows (rows, columns) and the expert of each, (rows,)."""
    # x is (..., 1, columns) with the leading axes of `indices`, or with ones that it is broadcast over.
    rows = mx.broadcast_to(x.squeeze(-2), (*indices.shape, x.shape[-1]))
    return rows.reshape(-1, x.shape[-1]), indices.reshape(-1)
