"""Which elements of a source tensor form a tensor of the model, and how rows of that one are read without the rest.

mlx-lm stacks, splits, transposes and reshapes what a checkpoint holds. Each of these only says which element is where:
an offset and strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx

    from quantize.source.checkpoint import ShardReader, SourceTensor


@dataclass(frozen=True, slots=True)
class View:
    """A matrix of elements of a source tensor. Offsets and strides count elements; `plus` is added to each.

    `rows` are the axes (count, stride) that are folded into the rows, outermost first; `columns` is the last axis.
    """

    offset: int
    rows: tuple[tuple[int, int], ...]
    columns: tuple[int, int]
    plus: float = 0

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns)"""
        return prod(count for count, _ in self.rows), self.columns[0]

    @property
    def is_transposed(self) -> bool:
        """Whether a row runs down the columns of the source."""
        return self.columns[1] > self.rows[-1][1] > 0

    def offset_of(self, row: int) -> int:
        """Where in the source a row begins."""
        offset = self.offset
        for count, stride in reversed(self.rows):
            row, index = divmod(row, count)
            offset += index * stride
        return offset

    def end_of_run(self, row: int) -> int:
        """The first row behind `row` that the innermost row axis does not hold."""
        height = self.rows[-1][0]
        return row - row % height + height

    @property
    def spread(self) -> int:
        """How many elements are read for one that is used."""
        stride = self.rows[-1][1]
        return stride if self.is_transposed else max(1, stride // max(1, self.columns[0]))


def view_of(offset: int, shape: Sequence[int], strides: Sequence[int], plus: float = 0) -> View:
    """The view with as few axes as possible: axes of one element vanish, and those that continue each other merge."""
    columns = (shape[-1], strides[-1] if shape[-1] > 1 else 1) if shape else (1, 1)
    rows: list[tuple[int, int]] = []
    for count, stride in zip(shape[:-1], strides[:-1], strict=True):
        if count == 1:
            continue
        if rows and rows[-1][1] == count * stride:
            rows[-1] = (rows[-1][0] * count, stride)
        else:
            rows.append((count, stride))
    return View(offset, tuple(rows) or ((1, 0),), columns, plus)


def read(reader: ShardReader, tensor: SourceTensor, view: View, start: int, stop: int) -> mx.array:
    """Rows start..stop of `view` of `tensor`, as (stop - start, columns). Only the source rows they are in are read."""
    import mlx.core as mx

    parts = []
    while start < stop:
        count = min(view.end_of_run(start), stop) - start
        parts.append(_read_run(reader, tensor, view, view.offset_of(start), count))
        start += count
    rows = parts[0] if len(parts) == 1 else mx.concatenate(parts)
    # mlx-lm adds a Python number too: the sum is rounded to the dtype.
    return rows + view.plus if view.plus else rows


def _read_run(reader: ShardReader, tensor: SourceTensor, view: View, offset: int, count: int) -> mx.array:
    import mlx.core as mx

    width, (columns, step), stride = tensor.matrix[1], view.columns, view.rows[-1][1]
    first, column = divmod(offset, width)
    last = (offset + (count - 1) * stride + (columns - 1) * step) // width + 1
    end = column + (count - 1) * stride + 1
    if view.is_transposed and step % width == 0 and end <= width:
        return mx.contiguous(reader.columns(tensor, first, last, column, end)[:: step // width, ::stride].T)
    rows = reader.rows(tensor, first, last)
    if step == 1 and columns == width and (count == 1 or stride == width):
        return rows
    return mx.contiguous(mx.as_strided(rows, (count, columns), (stride, step), column))
