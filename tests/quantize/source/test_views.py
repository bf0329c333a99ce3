"""Views name the elements that MLX's own operations move, and any rows of them are read alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from quantize.build.blocks import cut
from quantize.plan.plan import make_plan
from quantize.source.checkpoint import HubOptions, SourceTensor
from quantize.source.sources import open_checkpoint
from quantize.source.standins import Standin
from quantize.source.views import read
from tests.support.hub_families import write_hub_family


class InMemory:
    """A reader of one array."""

    def __init__(self, array: mx.array) -> None:
        self._matrix = array.reshape(-1, array.shape[-1])
        self.read = 0

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> mx.array:
        return self.columns(tensor, start, stop, 0, self._matrix.shape[1])

    def columns(self, tensor: SourceTensor, start: int, stop: int, first: int, last: int) -> mx.array:
        self.read += (stop - start) * (last - first)
        return self._matrix[start:stop, first:last]


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x,
        lambda x: x + 1.0,
        lambda x: x[..., :4, :],
        lambda x: x[..., 1::2, :],
        lambda x: x[..., 3:],
        lambda x: x[..., ::3],
        lambda x: x.swapaxes(1, 2),
        lambda x: x[..., 2:6].swapaxes(-1, -2),
        lambda x: x.moveaxis(2, 1)[:, 1:],
        lambda x: x.transpose(1, 0, 2),
        lambda x: x.reshape(6, 4, -1)[:, :3].swapaxes(-1, -2),
        lambda x: x.reshape(6, 4, -1)[:, 3:, :],
        lambda x: x.flatten(-2)[1:],
        lambda x: x[1],
        lambda x: x[:, :, 2:3],
        lambda x: x[:, :, 2:3].squeeze(),
    ],
)
def test_a_view_has_the_elements_of_the_operation(move: Callable[[Any], Any]) -> None:
    array = mx.arange(3 * 8 * 7).reshape(3, 8, 7).astype(mx.float32)
    tensor = SourceTensor("x", "F32", array.shape, "shard", array.nbytes)
    expected = move(array)
    moved = move(Standin.of("x", array.shape, mx.float32))
    assert moved.shape == expected.shape
    view = moved.view_of_source
    matrix = expected.reshape(-1, expected.shape[-1])
    assert view.matrix == matrix.shape
    for start in range(len(matrix)):
        for stop in range(start + 1, len(matrix) + 1):
            rows = read(InMemory(array), tensor, view, start, stop)
            assert mx.array_equal(rows, matrix[start:stop]), (start, stop)


def test_a_transposed_row_reads_only_its_column() -> None:
    array = mx.arange(64).reshape(8, 8)
    reader = InMemory(array)
    view = Standin.of("x", array.shape, mx.int32).swapaxes(0, 1).view_of_source
    read(reader, SourceTensor("x", "I32", array.shape, "shard", 256), view, 2, 3)
    assert reader.read == 8


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x * 2.0,
        lambda x: x @ x,
        lambda x: x.view(mx.uint32),
        lambda x: x.swapaxes(0, 1).reshape(-1),
        lambda x: x.astype(mx.float16),
        lambda x: x + x,
        lambda x: mx.concatenate([x, x]),
    ],
)
def test_what_is_no_view_is_refused(operation: Callable[[Any], Any]) -> None:
    with pytest.raises((TypeError, AttributeError)):
        operation(Standin.of("x", (4, 8), mx.bfloat16))


@pytest.mark.parametrize("family", ["gpt_oss", "llama4", "deepseek_v3", "qwen3_next", "lfm2_moe"])
def test_small_blocks_are_the_whole_tensor(family: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_hub_family(tmp_path, family)), HubOptions())
    for tensor, slices in make_plan(checkpoint, "source").work:
        with checkpoint.open(tensor.shard) as reader:
            for piece in slices:
                whole = read(reader, tensor, piece.view, 0, piece.view.matrix[0])
                blocks = list(cut(tensor, [piece], 700))
                assert [block.at for block in blocks] == sorted({block.at for block in blocks})
                assert mx.array_equal(mx.concatenate([block.rows(reader) for block in blocks]), whole), tensor.name
