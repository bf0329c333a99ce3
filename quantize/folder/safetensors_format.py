"""The safetensors format, a JSON header and then the bytes of the tensors: reading headers, and laying files out.

8 bytes little-endian: length of the JSON. The JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]}, offsets
counted from the end of the JSON. Tensors are contiguous, without holes. https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.errors import SourceError
from quantize.foreign_json import read_object
from quantize.names import checked_name, distinct_names

# Lists which tensor is in which shard.
INDEX = "model.safetensors.index.json"
# Bytes per element.
ITEM_SIZES = {
    "BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U8": 1, "I8": 1, "U16": 2,
    "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8, "BOOL": 1,
}  # fmt: skip
_LENGTH = struct.Struct("<Q")
LENGTH_SIZE = _LENGTH.size
# The library's own bound.
_LONGEST_HEADER = 100_000_000
# Far beyond any model: the largest have some 100,000 in all their files, of at most 5 axes.
_MOST_TENSORS = 200_000
_MOST_AXES = 8
# The largest file there can be.
_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file; `begin` and `end` count from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Header:
    """`data` is where the tensors begin in the file; `size` is the whole file's."""

    entries: Mapping[str, Entry]
    data: int
    size: int


def nbytes(dtype: str, shape: Iterable[int]) -> int:
    return ITEM_SIZES[dtype] * math.prod(shape)


def read_header(file: Path) -> Header:
    """The header of a whole file. Raises SourceError when the file is damaged or cut short."""
    try:
        with file.open("rb") as opened:
            data = data_start(file.name, opened.read(LENGTH_SIZE))
            header = parse_header(file.name, opened.read(data - LENGTH_SIZE), data)
        size = file.stat().st_size
    except OSError as error:
        raise SourceError(f"{file.name} cannot be read: {error.strerror}.") from error
    if size != header.size:
        raise SourceError(f"{file.name} has {size} bytes; its header says {header.size}: it is cut short or damaged.")
    return header


def data_start(file: str, start: bytes) -> int:
    """Where the header ends and the tensors begin, from the file's first 8 bytes. Raises SourceError."""
    length = _LENGTH.unpack(start)[0] if len(start) == LENGTH_SIZE else _LONGEST_HEADER + 1
    if length > _LONGEST_HEADER:
        raise SourceError(f"{file} is not a safetensors file.")
    return LENGTH_SIZE + int(length)


def parse_header(file: str, text: bytes, data: int) -> Header:
    """Entries in the order of their bytes, each checked against its dtype and shape, without holes between them."""
    if text.count(b"data_offsets") > _MOST_TENSORS:
        raise SourceError(f"The header of {file} describes more than {_MOST_TENSORS:,} tensors.")
    try:
        found = [_entry(name, value) for name, value in read_object(text).items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(f"The header of {file} is damaged.") from error
    found.sort(key=lambda entry: (entry.begin, entry.end))
    end = 0
    for entry in found:
        if entry.dtype not in ITEM_SIZES:
            raise SourceError(f"{file}: {entry.name} has the dtype {entry.dtype}, which is not supported.")
        if entry.begin != end or entry.nbytes != nbytes(entry.dtype, entry.shape):
            raise SourceError(f"The header of {file} is damaged: {entry.name} has the wrong offsets.")
        end = entry.end
    return Header({entry.name: entry for entry in found}, data, data + end)


def _entry(name: str, value: Any) -> Entry:
    """Raises ValueError, TypeError or KeyError. Every number is bounded here, before any two are multiplied."""
    (begin, end), shape = value["data_offsets"], value["shape"]
    if not isinstance(value["dtype"], str) or not isinstance(shape, list) or len(shape) > _MOST_AXES:
        raise TypeError(f"{name} has no dtype or no shape")
    if not all(type(number) is int and 0 <= number <= _LARGEST for number in (begin, end, *shape)):
        raise ValueError(f"{name} has a size that no file can have")
    return Entry(name, value["dtype"], tuple(shape), begin, end)


def parse_index(text: bytes) -> dict[str, str]:
    """Tensor name -> shard. Raises SourceError."""
    try:
        index = {str(name): str(shard) for name, shard in read_object(text)["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(f"The source's {INDEX} is damaged.") from None
    if len(index) > _MOST_TENSORS:
        raise SourceError(f"{INDEX} names more than {_MOST_TENSORS:,} tensors.")
    return index


def indexed_shards(index: Mapping[str, str]) -> list[str]:
    """The shards that an index names, each a file of the same folder. Raises SourceError."""
    shards = sorted(set(index.values()))
    distinct_names(map(checked_name, shards))
    return shards


def lay_out(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> tuple[bytes, Header]:
    """The first bytes of a file that holds `tensors` (name, dtype, shape) in that order, and its header."""
    entries: dict[str, Entry] = {}
    end = 0
    for name, dtype, shape in tensors:
        entries[name] = Entry(name, dtype, shape, end, end + nbytes(dtype, shape))
        end = entries[name].end
    described = {
        entry.name: {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [entry.begin, entry.end]}
        for entry in entries.values()
    }
    text = json.dumps({"__metadata__": {"format": "mlx"}} | described, separators=(",", ":")).encode()
    # The data begins at a multiple of 8, as the format asks.
    text += b" " * (-len(text) % 8)
    start = _LENGTH.pack(len(text)) + text
    return start, Header(entries, len(start), len(start) + end)
