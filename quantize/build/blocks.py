"""The work on one source tensor, cut into blocks of rows: the unit that is read, quantized and written.

Groups never cross rows, so the result does not depend on where blocks are cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantize.folder.safetensors_format import nbytes
from quantize.plan.output_tensor import OutputTensor
from quantize.plan.plan import SourceSlice
from quantize.source.checkpoint import ShardReader, SourceTensor
from quantize.source.folder import DTYPES
from quantize.source.views import View, read

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True, slots=True)
class Block:
    """Rows start..stop of `view` of `source` become rows `at`.. of `output`, its leading axes folded likewise."""

    source: SourceTensor
    view: View
    start: int
    stop: int
    output: OutputTensor
    at: int

    @property
    def nbytes(self) -> int:
        """Size in the source."""
        elements = (self.stop - self.start) * self.view.matrix[1]
        return self.source.nbytes * elements // math.prod(self.source.shape)

    def rows(self, reader: ShardReader) -> mx.array:
        """(stop - start, columns) in the dtype of the output."""
        rows = read(reader, self.source, self.view, self.start, self.stop)
        # The pieces of a stack may differ.
        return rows if self.source.dtype == self.output.dtype else rows.astype(DTYPES[self.output.dtype])


def cut(tensor: SourceTensor, slices: Sequence[SourceSlice], block_bytes: int) -> Iterator[Block]:
    """In source order, each block reads at most `block_bytes` of the tensor's dtype, but at least one row."""
    blocks = [block for source_slice in slices for block in _blocks(tensor, source_slice, block_bytes)]
    return iter(sorted(blocks, key=lambda block: block.view.offset_of(block.start)))


def _blocks(tensor: SourceTensor, source_slice: SourceSlice, block_bytes: int) -> Iterator[Block]:
    view = source_slice.view
    total, columns = view.matrix
    rows = max(1, block_bytes // (nbytes(tensor.dtype, [columns]) * view.spread))
    start = 0
    while start < total:
        # One run each: it is read at once.
        stop = min(start + rows, view.end_of_run(start))
        yield Block(tensor, view, start, stop, source_slice.output, source_slice.first_row + start)
        start = stop
