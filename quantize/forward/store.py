"""Where arrays are kept between the parts of a pass: in memory, or in a folder, one safetensors file a key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

Arrays = Mapping[str, mx.array]


class Store(Protocol):
    def put(self, key: str, arrays: Arrays) -> None: ...
    def get(self, key: str) -> Arrays: ...
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

    def has(self, key: str) -> bool:
        return key in self._kept

    def drop(self, key: str) -> None:
        self._kept.pop(key, None)


class InFolder:
    """A key is whole or absent, whenever the process ends. Arrays come back unread: they are read when evaluated."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def put(self, key: str, arrays: Arrays) -> None:
        # The suffix stays: mlx appends its own to any other.
        written = self._folder / f".{key}.safetensors"
        mx.save_safetensors(str(written), dict(arrays))
        written.replace(self._file(key))

    def get(self, key: str) -> Arrays:
        loaded: Any = mx.load(str(self._file(key)))
        return dict(loaded)

    def has(self, key: str) -> bool:
        return self._file(key).is_file()

    def drop(self, key: str) -> None:
        self._file(key).unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"
