"""The work on one source tensor, cut into blocks of rows: what is read, quantized and written in one go.

Groups lie within a row, so a block of rows quantizes to the same bytes wherever it is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quantize.plan.output_tensor import OutputTensor
from quantize.plan.plan import SourceSlice
from quantize.source.checkpoint import SourceTensor


@dataclass(frozen=True, slots=True)
class Block:
    """Rows start..stop of `source.matrix` become rows `at`.. of `target`, whose leading axes are folded likewise."""

    source: SourceTensor
    start: int
    stop: int
    target: OutputTensor
    at: int

    @property
    def nbytes(self) -> int:
        """Of the source, as it is stored there."""
        return self.source.nbytes * (self.stop - self.start) // self.source.matrix[0]


def cut(tensor: SourceTensor, pieces: Sequence[SourceSlice], block_bytes: int) -> Iterator[Block]:
    """In the order of the source's bytes, each block of at most `block_bytes` (but of one row at least)."""
    rows = max(1, block_bytes * tensor.matrix[0] // max(1, tensor.nbytes))
    for start, stop, at, target in sorted(_runs(tensor, pieces), key=lambda run: run[0]):
        for first in range(start, stop, rows):
            yield Block(tensor, first, min(first + rows, stop), target, at + first - start)


def _runs(tensor: SourceTensor, pieces: Sequence[SourceSlice]) -> Iterator[tuple[int, int, int, OutputTensor]]:
    """Start and stop in the source, first row in the target: rows that lie together in both."""
    total = tensor.matrix[0]
    for piece in pieces:
        index, parts = piece.part
        # Parts are cut from each matrix of the stack.
        whole = total if parts == 1 else tensor.shape[-2]
        share = whole // parts
        for number in range(total // whole):
            start = number * whole + index * share
            yield start, start + share, piece.first_row + number * share, piece.target
