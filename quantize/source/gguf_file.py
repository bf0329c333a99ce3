"""A GGUF file: its metadata, and the rows of its tensors, read by their byte range and dequantized.

The gguf package knows the types and dequantizes them. Its GGUFReader (0.19) is not used: it makes two numpy views of
every string and number of a vocabulary. For one of Llama 3's size that took 633 MB and 12 s; this takes 44 MB and 1 s.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from quantize.errors import SourceError
from quantize.source.checkpoint import read_at, read_errors

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
# Far beyond any model; ggml has 4 axes.
_MOST_TENSORS = 200_000
_MOST_VALUES = 10_000
_LONGEST_ARRAY = 4_000_000
_MOST_AXES = 8
_NUMBERS = {
    GGUFValueType.UINT8: "<u1", GGUFValueType.INT8: "<i1", GGUFValueType.UINT16: "<u2", GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4", GGUFValueType.INT32: "<i4", GGUFValueType.UINT64: "<u8", GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT32: "<f4", GGUFValueType.FLOAT64: "<f8", GGUFValueType.BOOL: "?",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """`shape` is row-major; `offset` is where its bytes begin in the file."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        elements, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // elements * size

    @property
    def nbytes(self) -> int:
        return self.row_bytes * math.prod(self.shape[:-1])


class GgufFile:
    """Thread-safe. Raises SourceError for a file that is damaged, cut short or of an unknown kind."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with (
                read_errors(path.name),
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                self.metadata, self.tensors = _parse(data, path.name)
                size = len(data)
        except ValueError as error:
            raise SourceError(f"{path.name} cannot be read as GGUF.") from error
        for tensor in self.tensors.values():
            if tensor.offset + tensor.nbytes > size:
                raise SourceError(f"{path.name} is cut short: {tensor.name} is incomplete.")

    def rows(self, tensor: StoredTensor, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Rows of the tensor, leading axes folded, as float32: (stop - start, columns)."""
        stored = np.empty((stop - start, tensor.row_bytes), np.uint8)
        with read_errors(self._path.name), self._path.open("rb", buffering=0) as file:
            read_at(file.fileno(), stored.data.cast("B"), tensor.offset + start * tensor.row_bytes, tensor.name)
        rows: np.ndarray[Any, np.dtype[np.float32]] = quants.dequantize(stored, tensor.kind)
        return rows


class _Cursor:
    """Reads values one after the other, and never beyond the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.position = 0

    def bytes(self, count: int) -> bytes:
        if count > len(self._data) - self.position:
            raise ValueError("beyond the end of the file")
        self.position += count
        return self._data[self.position - count : self.position]

    def numbers(self, dtype: str, count: int) -> list[Any]:
        numbers: list[Any] = np.frombuffer(self.bytes(count * np.dtype(dtype).itemsize), dtype).tolist()
        return numbers

    def integer(self, size: int) -> int:
        return int.from_bytes(self.bytes(size), "little")

    def text(self) -> str:
        return self.bytes(self.integer(8)).decode()

    def value(self) -> Any:
        kind = GGUFValueType(self.integer(4))
        if kind is GGUFValueType.STRING:
            return self.text()
        if kind is not GGUFValueType.ARRAY:
            return self.numbers(_NUMBERS[kind], 1)[0]
        kind, count = GGUFValueType(self.integer(4)), self.integer(8)
        if count > _LONGEST_ARRAY:
            raise ValueError("an array longer than any vocabulary")
        if kind is GGUFValueType.STRING:
            return [self.text() for _ in range(count)]
        if kind is GGUFValueType.ARRAY:
            raise ValueError("an array of arrays")
        return self.numbers(_NUMBERS[kind], count)


def _parse(data: mmap.mmap, file: str) -> tuple[Mapping[str, Any], Mapping[str, StoredTensor]]:
    cursor = _Cursor(data)
    if cursor.bytes(4) != _MAGIC:
        raise ValueError("not a GGUF file")
    if (version := cursor.integer(4)) not in _VERSIONS:
        raise SourceError(f"{file} is of GGUF version {version}; 2 and 3 are supported.")
    tensor_count, value_count = cursor.integer(8), cursor.integer(8)
    if tensor_count > _MOST_TENSORS or value_count > _MOST_VALUES:
        raise SourceError(f"{file} describes {tensor_count:,} tensors and {value_count:,} values: more than any model.")
    metadata = {cursor.text(): cursor.value() for _ in range(value_count)}
    described = [_describe(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise ValueError("an alignment that is not a positive integer")
    begin = -(-cursor.position // alignment) * alignment
    return metadata, {name: _stored(name, kind, shape, begin + offset) for name, shape, kind, offset in described}


def _describe(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, axes = cursor.text(), cursor.integer(4)
    # The fastest axis comes first.
    if axes > _MOST_AXES:
        raise ValueError(f"{name} has {axes} axes")
    shape = tuple(reversed(cursor.numbers("<u8", axes)))
    return name, shape, cursor.integer(4), cursor.integer(8)


def _stored(name: str, kind: int, shape: tuple[int, ...], offset: int) -> StoredTensor:
    known = {known.value: known for known in GGMLQuantizationType}.get(kind)
    # Each type that the package dequantizes is a class of that name, but for these two.
    if known is None or not (known.name in ("F32", "F16") or hasattr(quants, known.name)):
        raise SourceError(f"{name} has the GGUF type {known.name if known else kind}, which is not supported.")
    if not shape or shape[-1] % GGML_QUANT_SIZES[known][0]:
        raise ValueError(f"{name} has a shape that its type cannot have")
    return StoredTensor(name, known, shape, offset)
