"""Where arrays are kept between the parts of a pass: in memory, or in a folder, one safetensors file a key."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import mlx.core as mx
import numpy as np

from quantize.errors import SourceError
from quantize.folder.safetensors_format import read_header

Arrays = Mapping[str, mx.array]

# By the names of safetensors: what numpy reads, which knows no bfloat16, and what it is.
_DTYPES: Final = {
    "F32": (np.uint32, mx.float32), "F16": (np.uint16, mx.float16), "BF16": (np.uint16, mx.bfloat16),
}  # fmt: skip


def save(file: Path, arrays: Arrays, metadata: Mapping[str, str] | None = None) -> None:
    """As safetensors. Raises OSError where the file cannot be written, of which nothing is left then."""
    mx.eval(dict(arrays))
    try:
        mx.save_safetensors(str(file), dict(arrays), metadata=dict(metadata or {}))
    except RuntimeError as error:
        # MLX does not say why.
        full = shutil.disk_usage(file.parent).free < sum(array.nbytes for array in arrays.values())
        file.unlink(missing_ok=True)
        number = errno.ENOSPC if full else errno.EIO
        raise OSError(number, os.strerror(number), str(file)) from error


class Store(Protocol):
    def put(self, key: str, arrays: Arrays) -> None: ...
    def get(self, key: str) -> Arrays: ...
    def rows(self, key: str, name: str, rows: range) -> mx.array:
        """Some rows of one floating array, at no more cost than theirs."""
        ...

    def has(self, key: str) -> bool: ...
    def drop(self, key: str) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._kept: dict[str, Arrays] = {}

    def put(self, key: str, arrays: Arrays) -> None:
        mx.eval(dict(arrays))
        self._kept[key] = dict(arrays)

    def get(self, key: str) -> Arrays:
        return self._kept[key]

    def rows(self, key: str, name: str, rows: range) -> mx.array:
        return self._kept[key][name][rows.start : rows.stop]

    def has(self, key: str) -> bool:
        return key in self._kept

    def drop(self, key: str) -> None:
        self._kept.pop(key, None)


class InFolder:
    """A key is whole or absent, whenever the process ends. Where the machine did, a file may be cut short, and its key
    counts as absent. Arrays come back unread: they are read when evaluated."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def put(self, key: str, arrays: Arrays) -> None:
        # The suffix stays: mlx appends its own to any other.
        written = self._folder / f".{key}.safetensors"
        save(written, arrays)
        written.replace(self._file(key))

    def get(self, key: str) -> Arrays:
        loaded: Any = mx.load(str(self._file(key)))
        return dict(loaded)

    def rows(self, key: str, name: str, rows: range) -> mx.array:
        header = read_header(self._file(key))
        entry = header.entries[name]
        container, dtype = _DTYPES[entry.dtype]
        width = entry.nbytes // entry.shape[0]
        with self._file(key).open("rb") as file:
            file.seek(header.data + entry.begin + rows.start * width)
            read = np.frombuffer(file.read(len(rows) * width), container)
        return mx.array(read.reshape(len(rows), *entry.shape[1:])).view(dtype)

    def has(self, key: str) -> bool:
        file = self._file(key)
        if file.is_file():
            with contextlib.suppress(SourceError):
                read_header(file)
                return True
        return False

    def drop(self, key: str) -> None:
        self._file(key).unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"
