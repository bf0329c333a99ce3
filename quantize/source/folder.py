"""A folder of safetensors shards as a checkpoint, and the reading of one shard by byte ranges.

`mx.load` would read a whole tensor for each slice of it; here only the bytes of the rows asked for are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from quantize.errors import SourceError
from quantize.folder.safetensors_format import (
    INDEX,
    ITEM_SIZES,
    Entry,
    Header,
    indexed_shards,
    parse_index,
    read_header,
)
from quantize.names import checked_name
from quantize.source.checkpoint import (
    AUXILIARY_FILES,
    Shard,
    ShardReader,
    SourceTensor,
    parse_config,
    read_at,
    read_errors,
    with_fp8_scales,
    with_mxfp4_scales,
)

# numpy has neither bfloat16 nor fp8: such tensors are read as integers of the same size.
_CARRIERS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
DTYPES = {
    "BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32, "U8": mx.uint8, "I8": mx.int8, "U16": mx.uint16,
    "I16": mx.int16, "U32": mx.uint32, "I32": mx.int32, "U64": mx.uint64, "I64": mx.int64, "BOOL": mx.bool_,
}  # fmt: skip
_FP8_BLOCK = 128


class FolderCheckpoint:
    """Raises SourceError for a missing index, shard or tensor."""

    scratch_bytes = 0

    def __init__(self, folder: Path, *, label: str | None = None) -> None:
        self._folder = folder
        self.repository, self.revision = _of_cache(folder.resolve())
        self.label = label or self.repository or folder.resolve().name
        with read_errors("config.json"):
            self.config: Mapping[str, Any] = parse_config((folder / "config.json").read_bytes())
        names = shard_names(folder)
        headers = {name: read_header(folder / checked_name(name)) for name in names}
        self.tensors: Mapping[str, SourceTensor] = source_tensors(headers, _index(folder))
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
            return {
                name: path.read_bytes()
                for name in AUXILIARY_FILES
                if (path := self._folder / checked_name(name)).is_file()
            }

    @contextlib.contextmanager
    def open(self, shard: str, prefetch: str | None = None) -> Iterator[ShardReader]:
        with SafetensorsShard(self._folder / checked_name(shard)) as reader:
            yield reader


class SafetensorsShard:
    """One open file. Thread-safe: every read names its own offset."""

    def __init__(self, path: Path) -> None:
        self._header = read_header(path)
        self._name = path.name
        with read_errors(path.name):
            self._file = os.open(path, os.O_RDONLY)

    def __enter__(self) -> SafetensorsShard:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> mx.array:
        entry = self._entry(tensor.name)
        columns = tensor.matrix[1]
        if tensor.is_mxfp4:
            return self._from_mxfp4(entry, tensor, start, stop)
        read = self._read(entry, start * columns, stop * columns)
        if tensor.scale is None:
            return mx.array(read).view(DTYPES[tensor.dtype]).reshape(stop - start, columns)
        return self._from_fp8(mx.array(read).reshape(stop - start, columns), tensor.scale, start)

    def columns(self, tensor: SourceTensor, start: int, stop: int, first: int, last: int) -> mx.array:
        if tensor.scale is not None:
            return self.rows(tensor, start, stop)[:, first:last]
        entry = self._entry(tensor.name)
        width = tensor.matrix[1]
        buffer = np.empty((stop - start, last - first), _CARRIERS[ITEM_SIZES[entry.dtype]])
        with read_errors(self._name):
            for row, into in enumerate(buffer, start):
                self._read_into(entry, into, row * width + first)
        return mx.array(buffer).view(DTYPES[tensor.dtype])

    def _from_mxfp4(self, codes: Entry, tensor: SourceTensor, start: int, stop: int) -> mx.array:
        """Two codes a byte, the lower half first, and a scale for each 32: MLX's own layout."""
        assert tensor.scale is not None
        groups = tensor.matrix[1] // 32
        scales = mx.array(self._read(self._entry(tensor.scale), start * groups, stop * groups)).reshape(-1, groups)
        packed = mx.array(self._read(codes, start * groups * 16, stop * groups * 16)).view(mx.uint32)
        packed = packed.reshape(stop - start, -1)
        return mx.dequantize(packed, scales, group_size=32, bits=4, mode="mxfp4", dtype=mx.bfloat16)

    def _from_fp8(self, rows: mx.array, scale_name: str, start: int) -> mx.array:
        """Each 128 x 128 block has its own scale: (ceil(rows / 128), ceil(columns / 128))."""
        entry = self._entry(scale_name)
        scales = mx.array(self._read(entry, 0, entry.nbytes // ITEM_SIZES[entry.dtype]))
        scales = scales.view(DTYPES[entry.dtype]).reshape(entry.shape)
        block_rows = (mx.arange(start, start + rows.shape[0])) // _FP8_BLOCK
        block_columns = mx.arange(rows.shape[1]) // _FP8_BLOCK
        factors = scales[block_rows][:, block_columns]
        return (mx.from_fp8(rows, dtype=mx.bfloat16) * factors).astype(mx.bfloat16)

    def _entry(self, name: str) -> Entry:
        if name not in self._header.entries:
            raise SourceError(f"{self._name} holds no tensor {name}: it changed since its header was read.")
        return self._header.entries[name]

    def _read(self, entry: Entry, first: int, last: int) -> np.ndarray[Any, Any]:
        """Elements first..last of a tensor."""
        buffer = np.empty(last - first, _CARRIERS[ITEM_SIZES[entry.dtype]])
        with read_errors(self._name):
            self._read_into(entry, buffer, first)
        return buffer

    def _read_into(self, entry: Entry, buffer: np.ndarray[Any, Any], first: int) -> None:
        """Elements of a tensor from `first` on."""
        begin = self._header.data + entry.begin + first * ITEM_SIZES[entry.dtype]
        read_at(self._file, buffer.data.cast("B"), begin, entry.name)


def source_tensors(headers: Mapping[str, Header], index: Mapping[str, str] | None) -> dict[str, SourceTensor]:
    """All tensors, in order. Raises SourceError for a duplicate, or one that is not where the index says."""
    found: dict[str, SourceTensor] = {}
    for shard, header in headers.items():
        for entry in header.entries.values():
            if entry.name in found:
                raise SourceError(f"The tensor {entry.name} is in {found[entry.name].shard} and in {shard}.")
            found[entry.name] = SourceTensor(entry.name, entry.dtype, entry.shape, shard, entry.nbytes)
    for name, shard in (index or {}).items():
        if name not in found or found[name].shard != shard:
            raise SourceError(f"The index says that {shard} holds {name}; it does not.")
    return with_mxfp4_scales(with_fp8_scales(list(found.values())))


def shard_names(folder: Path) -> list[str]:
    """The shards in the index, else the single file. Raises SourceError."""
    index = _index(folder)
    names = indexed_shards(index) if index is not None else ["model.safetensors"]
    for name in names:
        if not (folder / checked_name(name)).is_file():
            raise SourceError(f"The source lacks the shard {name}.")
    return names


def _index(folder: Path) -> dict[str, str] | None:
    with read_errors(INDEX):
        return parse_index((folder / INDEX).read_bytes()) if (folder / INDEX).is_file() else None


def _of_cache(folder: Path) -> tuple[str | None, str | None]:
    """Repository and commit, from the path of a snapshot in the Hub's cache: models--OWNER--NAME/snapshots/COMMIT."""
    match = re.fullmatch(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})", "/".join(folder.parts[-3:]))
    return (f"{match[1]}/{match[2]}", match[3]) if match else (None, None)
