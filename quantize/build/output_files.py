"""The safetensors files of a model while they are filled; every tensor's offset is known before the first write."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from quantize.plan.plan import OutputFile


class OutputFiles:
    """Opens the files in `folder`, or creates them sparse at their full size. Threads may write concurrently."""

    def __init__(self, folder: Path, files: Sequence[OutputFile]) -> None:
        self._places: dict[str, tuple[int, int, int]] = {}
        self._open: list[int] = []
        for file in files:
            descriptor = os.open(folder / file.name, os.O_RDWR | os.O_CREAT, 0o666)
            self._open.append(descriptor)
            os.ftruncate(descriptor, file.header.size)
            _write(descriptor, memoryview(file.start), 0)
            for entry in file.header.entries.values():
                rows = max(1, int(np.prod(entry.shape[:-1])))
                self._places[entry.name] = descriptor, file.header.data + entry.begin, entry.nbytes // rows

    def __enter__(self) -> OutputFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open:
            os.close(descriptor)

    def write(self, arrays: Mapping[str, mx.array], row: int) -> None:
        """Write evaluated rows of stored tensors, by name, starting at `row`."""
        for name, array in arrays.items():
            descriptor, offset, row_bytes = self._places[name]
            _write(descriptor, bytes_of(array), offset + row * row_bytes)

    def sync(self) -> None:
        for descriptor in self._open:
            os.fsync(descriptor)


def bytes_of(array: mx.array) -> memoryview:
    """The bytes of an evaluated array, without a copy."""
    return np.array(array.view(mx.uint8), copy=False).data.cast("B")


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)
