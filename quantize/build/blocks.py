"""The work on one source tensor, cut into blocks of rows: the unit that is read, quantized and written.

Groups never cross rows, so the result does not depend on where blocks are cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quantize.plan.output_tensor import OutputTensor
from quantize.plan.plan import SourceSlice
from quantize.source.checkpoint import SourceTensor


@dataclass(frozen=True, slots=True)
class Block:
    """Rows start..stop of `source.matrix` become rows `at`.. of `output`, its leading axes folded likewise."""

    source: SourceTensor
    start: int
    stop: int
    output: OutputTensor
    at: int

    @property
    def nbytes(self) -> int:
        """Size in the source."""
        return self.source.nbytes * (self.stop - self.start) // self.source.matrix[0]


def cut(tensor: SourceTensor, slices: Sequence[SourceSlice], block_bytes: int) -> Iterator[Block]:
    """In source order, each block at most `block_bytes` but at least one row."""
    rows = max(1, block_bytes * tensor.matrix[0] // max(1, tensor.nbytes))
    for start, stop, at, output in sorted(_runs(tensor, slices), key=lambda run: run[0]):
        for first in range(start, stop, rows):
            yield Block(tensor, first, min(first + rows, stop), output, at + first - start)


def _runs(tensor: SourceTensor, slices: Sequence[SourceSlice]) -> Iterator[tuple[int, int, int, OutputTensor]]:
    """Start and stop in the source, first row in the output: rows that are contiguous in both."""
    total = tensor.matrix[0]
    for source_slice in slices:
        index, parts = source_slice.part
        # Parts are cut from each matrix of the stack.
        matrix_rows = total if parts == 1 else tensor.shape[-2]
        rows = matrix_rows // parts
        for number in range(total // matrix_rows):
            start = number * matrix_rows + index * rows
            yield start, start + rows, source_slice.first_row + number * rows, source_slice.output
