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

# Lists which tensor is in which shard.
INDEX = "model.safetensors.index.json"
# Bytes per element.
ITEM_SIZES = {
    "BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4,
    "U64": 8, "I64": 8, "BOOL": 1,
}  # fmt: skip
_LENGTH = struct.Struct("<Q")
LENGTH_SIZE = _LENGTH.size
# The library's own bound.
_LONGEST_HEADER = 100_000_000


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
    try:
        read = json.loads(text)
        found = [_entry(name, value) for name, value in read.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(f"The header of {file} is damaged.") from error
    found.sort(key=lambda entry: (entry.begin, entry.end))
    end = 0
    for entry in found:
        if entry.dtype not in ITEM_SIZES:
            raise SourceError(f"{file}: {entry.name} has the dtype {entry.dtype}, which is not supported.")
        if entry.begin != end or entry.nbytes != nbytes(entry.dtype, entry.shape) or min(entry.shape, default=1) < 0:
            raise SourceError(f"The header of {file} is damaged: {entry.name} has the wrong offsets.")
        end = entry.end
    return Header({entry.name: entry for entry in found}, data, data + end)


def _entry(name: str, value: Any) -> Entry:
    begin, end = value["data_offsets"]
    return Entry(name, value["dtype"], tuple(map(int, value["shape"])), int(begin), int(end))


def parse_index(text: bytes) -> dict[str, str]:
    """Tensor name -> shard. Raises SourceError."""
    try:
        return {str(name): str(shard) for name, shard in json.loads(text)["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(f"The source's {INDEX} is damaged.") from None


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
