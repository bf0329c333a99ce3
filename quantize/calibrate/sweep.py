"""One walk over the columns of a matrix, where each decision moves the columns that are still to come.

GPTQ, coordinate descent and the refit of grids are all of this kind. Halving the columns and carrying the moves of the
left half to the right one as one matrix product keeps the work in large products, whatever a cache's size.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from quantize.forward.products import product

# A step gets its first column and that unit's values (E, rows, unit); it returns what it decided, any width, and its
# moves (E, rows, unit).
Step = Callable[[int, mx.array], tuple[mx.array, mx.array]]

# Graphs larger than this many columns are evaluated, so that memory does not grow with them.
_EVALUATED = 128


def sweep(values: mx.array, coupling: mx.array, unit: int, step: Step) -> mx.array:
    """The decisions of `step` for every unit of columns, left to right, joined on the last axis.

    values: (E, rows, columns); coupling: (E, columns, columns). After a unit, its moves times the coupling's rows of
    that unit are taken from the values to its right.
    """
    return _walk(values, coupling, unit, step, 0)[0]


def _walk(values: mx.array, coupling: mx.array, unit: int, step: Step, start: int) -> tuple[mx.array, mx.array]:
    """Decisions and moves of `values`, which begin at column `start`. A function of its own: one that is defined within
    `sweep` and calls itself refers to itself, and would hold gigabytes until Python looks for cycles."""
    units = values.shape[-1] // unit
    if units == 1:
        return step(start, values)
    half = units // 2 * unit
    middle, stop = start + half, start + values.shape[-1]
    left, moves = _walk(values[..., :half], coupling, unit, step, start)
    carried = product(moves, coupling[:, start:middle, middle:stop])
    right, more = _walk(values[..., half:] - carried, coupling, unit, step, middle)
    joined = mx.concatenate([left, right], axis=-1), mx.concatenate([moves, more], axis=-1)
    if stop - start >= _EVALUATED:
        mx.eval(joined)
    return joined
