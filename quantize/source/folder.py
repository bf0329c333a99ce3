"""A folder of safetensors shards as a checkpoint, and the reading of one shard by byte ranges.

`mx.load` would read a whole tensor for each slice of it; here only the bytes of the rows asked for are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from quantize.errors import SourceError
from quantize.folder.model_files import CHAT_TEMPLATES, holders, lost_shard, weight_files
from quantize.folder.safetensors_format import (
    INDEX,
    ITEM_SIZES,
    Header,
    parse_index,
    read_header,
)
from quantize.names import checked_name
from quantize.source.checkpoint import (
    Shard,
    ShardReader,
    SourceTensor,
    is_auxiliary,
    parse_config,
    read_at,
    read_errors,
)
from quantize.source.packed import unpacked

# numpy has neither bfloat16 nor fp8: such tensors are read as integers of the same size.
CARRIERS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
Raw = np.ndarray[Any, Any]
DTYPES = {
    "BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32, "U8": mx.uint8, "I8": mx.int8, "U16": mx.uint16,
    "I16": mx.int16, "U32": mx.uint32, "I32": mx.int32, "U64": mx.uint64, "I64": mx.int64, "BOOL": mx.bool_,
    "F8_E4M3": mx.uint8, "F8_E5M2": mx.uint8, "F8_E8M0": mx.uint8,
}  # fmt: skip
# Scales in other shards than their codes: as many as the threads of a build may need at once.
_KEPT_PARTS = 16


class FolderCheckpoint:
    """Raises SourceError for a missing index, shard or tensor."""

    scratch_bytes = 0

    def __init__(self, folder: Path, *, label: str | None = None) -> None:
        self._folder = folder
        self.repository, self.revision = _of_cache(folder.resolve())
        self.label = label or self.repository or folder.resolve().name
        with read_errors("config.json"):
            self.config: Mapping[str, Any] = parse_config((folder / "config.json").read_bytes())
        index = _index(folder)
        names = weight_files((path.name for path in folder.iterdir() if path.is_file()), index)
        headers = {name: read_header(folder / checked_name(name)) for name in names}
        self.tensors: Mapping[str, SourceTensor] = source_tensors(headers, index, self.config)
        self.shards: Sequence[Shard] = [Shard(name, headers[name].size) for name in names]

    @cached_property
    def identity(self) -> str:
        """A commit, or names, sizes and modification times: hashing every byte would take as long as building."""
        if self.revision is not None:
            return f"{self.repository}@{self.revision}"
        stats = [(self._folder / checked_name(shard.name)).stat() for shard in self.shards]
        facts = [[shard.name, stat.st_size, stat.st_mtime_ns] for shard, stat in zip(self.shards, stats, strict=True)]
        return hashlib.sha256(json.dumps([self.config, facts], sort_keys=True).encode()).hexdigest()

    def auxiliary_files(self) -> Mapping[str, bytes]:
        with read_errors("The tokenizer"):
            paths = [*self._folder.iterdir(), *self._folder.glob(f"{CHAT_TEMPLATES}/*")]
            named = {path.relative_to(self._folder).as_posix(): path for path in sorted(paths) if path.is_file()}
            return {name: path.read_bytes() for name, path in named.items() if is_auxiliary(name)}

    @contextlib.contextmanager
    def open(self, shard: str, prefetch: str | None = None) -> Iterator[ShardReader]:
        with SafetensorsShard(self._folder / checked_name(shard), shard, self._whole) as reader:
            yield reader

    def _whole(self, tensor: SourceTensor) -> Raw:
        with SafetensorsShard(self._folder / checked_name(tensor.shard), tensor.shard, self._whole) as shard:
            return shard.whole(tensor)


class SafetensorsShard:
    """One open file. Thread-safe: every read names its own offset.

    `elsewhere` reads a tensor of another shard, which belongs to one of this: scales are small.
    """

    def __init__(self, path: Path, name: str, elsewhere: Callable[[SourceTensor], Raw]) -> None:
        self._header = read_header(path)
        self._name = name
        self._elsewhere = lru_cache(_KEPT_PARTS)(elsewhere)
        with read_errors(name):
            self._file = os.open(path, os.O_RDONLY)

    def __enter__(self) -> SafetensorsShard:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> mx.array:
        return self.columns(tensor, start, stop, 0, tensor.matrix[1])

    def columns(self, tensor: SourceTensor, start: int, stop: int, first: int, last: int) -> mx.array:
        if tensor.packing is not None:
            return tensor.packing.block(self, start, stop, first, last)
        return self.part(tensor, start, stop, first, last)

    def part(self, tensor: SourceTensor, start: int, stop: int, first: int, last: int) -> mx.array:
        width = tensor.matrix[1]
        if tensor.shard != self._name:
            read = self._elsewhere(tensor).reshape(-1, width)[start:stop, first:last]
        elif first == 0 and last == width:
            read = self._read(tensor, start * width, stop * width).reshape(stop - start, width)
        else:
            read = np.empty((stop - start, last - first), CARRIERS[ITEM_SIZES[tensor.dtype]])
            for row, into in enumerate(read, start):
                self._read_into(into, tensor.name, row * width + first)
        return as_array(read, tensor.dtype)

    def whole(self, tensor: SourceTensor) -> Raw:
        """All elements of a tensor of this file, as integers of the same size."""
        return self._read(tensor, 0, math.prod(tensor.shape))

    def _read(self, tensor: SourceTensor, first: int, last: int) -> Raw:
        """Elements first..last."""
        buffer = np.empty(last - first, CARRIERS[ITEM_SIZES[tensor.dtype]])
        self._read_into(buffer, tensor.name, first)
        return buffer

    def _read_into(self, buffer: Raw, name: str, first: int) -> None:
        """Elements of a tensor from `first` on."""
        if name not in self._header.entries:
            raise SourceError(f"{self._name} holds no tensor {name}: it changed since its header was read.")
        begin = self._header.data + self._header.entries[name].begin + first * buffer.itemsize
        with read_errors(self._name):
            read_at(self._file, buffer.data.cast("B"), begin, name)


def as_array(raw: Raw, dtype: str) -> mx.array:
    """What was read as integers, in its own dtype; MLX has no float64 on a GPU, and no model needs one."""
    if dtype == "F64":
        return mx.array(np.ascontiguousarray(raw).view(np.float64).astype(np.float32))
    return mx.array(np.ascontiguousarray(raw)).view(DTYPES[dtype])


def source_tensors(
    headers: Mapping[str, Header], index: Mapping[str, str] | None, config: Mapping[str, Any]
) -> dict[str, SourceTensor]:
    """All tensors, in order. Raises SourceError for one that is missing, or is in two files and no index says which."""
    if missing := lost_shard(headers, index):
        raise SourceError(f"The source lacks the shard {missing}.")
    found: dict[str, SourceTensor] = {}
    for name, (shard, *others) in holders(headers, index).items():
        if others and (index or {}).get(name) != shard:
            raise SourceError(f"The tensor {name} is in {shard} and in {others[0]}, and no index tells which counts.")
        entry = headers[shard].entries[name]
        found[name] = SourceTensor(name, entry.dtype, entry.shape, shard, entry.nbytes)
    return unpacked(found, config)


def _index(folder: Path) -> dict[str, str] | None:
    with read_errors(INDEX):
        return parse_index((folder / INDEX).read_bytes()) if (folder / INDEX).is_file() else None


def _of_cache(folder: Path) -> tuple[str | None, str | None]:
    """Repository and commit, from the path of a snapshot in the Hub's cache: models--OWNER--NAME/snapshots/COMMIT."""
    match = re.fullmatch(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})", "/".join(folder.parts[-3:]))
    return (f"{match[1]}/{match[2]}", match[3]) if match else (None, None)
