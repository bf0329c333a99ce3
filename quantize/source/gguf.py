"""A GGUF file as a checkpoint: weights, tokenizer and chat template are all in the one file.

Rows are dequantized a block at a time, renamed, and what llama.cpp's converter did to q and k and to norms is undone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from quantize.errors import SourceError, native_errors
from quantize.folder.hashing import sha256_of
from quantize.folder.safetensors_format import nbytes
from quantize.source.checkpoint import Shard, ShardReader, SourceTensor, read_errors
from quantize.source.folder import DTYPES
from quantize.source.gguf_architectures import ROPE_FACTORS, architecture_of, config_of
from quantize.source.gguf_file import GgufFile, StoredTensor
from quantize.source.gguf_tokenizer import tokenizer_files

# Dequantizing needs a few float32 copies of what it works on: less than a block of rows at once.
_ELEMENTS_AT_ONCE = 500_000
_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


class GgufCheckpoint:
    """`dtype` is that of the rows read: what the model computes in. Raises SourceError for an unsupported model."""

    repository = None
    revision = None
    scratch_bytes = 0

    def __init__(self, file: Path, dtype: str = "BF16") -> None:
        if not file.is_file():
            raise SourceError(f"There is no file {file}.")
        self._path = file
        self._file = GgufFile(file)
        self._architecture = architecture_of(self._file.metadata)
        self.label = file.name
        self.config: Mapping[str, Any] = config_of(self._file, dtype=_DTYPE_NAMES[dtype])
        weights = [stored for name, stored in self._file.tensors.items() if name != ROPE_FACTORS]
        self._stored = {self._architecture.name_in_mlx(stored.name): stored for stored in weights}
        self.tensors: Mapping[str, SourceTensor] = {
            name: SourceTensor(name, dtype, stored.shape, file.name, nbytes(dtype, stored.shape))
            for name, stored in self._stored.items()
        }
        self.shards: Sequence[Shard] = [Shard(file.name, file.stat().st_size)]

    @cached_property
    def identity(self) -> str:
        with read_errors(self.label):
            return sha256_of(self._path)

    def auxiliary_files(self) -> Mapping[str, bytes]:
        with native_errors(f"The tokenizer in {self.label} is damaged"):
            return tokenizer_files(self._file.metadata, context_length=self.config["max_position_embeddings"])

    @contextlib.contextmanager
    def open(self, shard: str, prefetch: str | None = None) -> Iterator[ShardReader]:
        yield self

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> mx.array:
        stored, (total, columns) = self._stored[tensor.name], tensor.matrix
        heads = self._architecture.permuted_heads(stored.name, self.config)
        order = np.arange(total) if heads is None else row_order(total, heads)
        step = max(1, _ELEMENTS_AT_ONCE // columns)
        parts = [self._part(stored, order[at : min(at + step, stop)], tensor.dtype) for at in range(start, stop, step)]
        return mx.concatenate(parts)

    def columns(self, tensor: SourceTensor, start: int, stop: int, first: int, last: int) -> mx.array:
        return self.rows(tensor, start, stop)[:, first:last]

    def _part(self, stored: StoredTensor, order: np.ndarray[Any, Any], dtype: str) -> mx.array:
        """The rows `order`, which lie close together, evaluated so that their float32 copies are freed."""
        first = int(order.min())
        rows = self._file.rows(stored, first, int(order.max()) + 1)[order - first]
        part = mx.array(rows - np.float32(self._architecture.added_to(stored.name))).astype(DTYPES[dtype])
        mx.eval(part)
        return part


def row_order(rows: int, heads: int) -> np.ndarray[Any, Any]:
    """For each row of a Hugging Face llama its row in the GGUF: llama.cpp interleaves the rotary pairs of a head."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(rows)
