"""A checkpoint to build from: a folder of safetensors, a Hub repository or a GGUF file.

Callers see only this interface. Headers are read first (`tensors`), weights only when a shard is opened, a few rows at
a time.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from quantize.errors import SourceError
from quantize.folder.model_files import is_chat_template
from quantize.foreign_json import read_json
from quantize.source.spelled_out import spelled_out

if TYPE_CHECKING:
    import mlx.core as mx

# Tokenizer, template, generation defaults, licence.
_AUXILIARY_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
    "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt",
    "tiktoken.model", "vocab.txt",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt",
)  # fmt: skip


def is_auxiliary(name: str) -> bool:
    """Whether the file of that path in a source is copied byte for byte."""
    return name in _AUXILIARY_FILES or is_chat_template(name)


class Parts(Protocol):
    """Whoever has the stored tensors, in whatever shard they are."""

    def part(self, tensor: SourceTensor, start: int, stop: int, first: int, last: int) -> mx.array:
        """Rows start..stop and columns first..last of `tensor.matrix`, as stored; fp8 as bytes. Thread-safe."""
        ...


class Packing(Protocol):
    """How a matrix is stored, where its elements are not."""

    def block(self, parts: Parts, start: int, stop: int, first: int, last: int) -> mx.array:
        """Rows start..stop and columns first..last of the matrix. Raises SourceError."""
        ...


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """`dtype` and `shape` are those of the rows as read; `packing` says how they are stored, if otherwise.

    `nbytes` is what is stored.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    nbytes: int
    packing: Packing | None = None

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape as (rows, columns); leading axes are folded into the rows."""
        return math.prod(self.shape[:-1]), self.shape[-1] if self.shape else 1


@dataclass(frozen=True, slots=True)
class Shard:
    name: str
    size: int


class ShardReader(Protocol):
    def rows(self, tensor: SourceTensor, start: int, stop: int) -> mx.array:
        """Rows of `tensor.matrix`, as (stop - start, columns). Thread-safe."""
        ...

    def columns(self, tensor: SourceTensor, start: int, stop: int, first: int, last: int) -> mx.array:
        """Columns first..last of the rows start..stop, as (stop - start, last - first). Thread-safe."""
        ...


class Checkpoint(Protocol):
    """`identity` changes whenever the bytes may have changed; `revision` is a commit of `repository`, if known.

    `tensors` are in the order of the shards, and of their offsets within each.
    """

    @property
    def label(self) -> str: ...
    @property
    def repository(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def identity(self) -> str: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, SourceTensor]: ...
    @property
    def shards(self) -> Sequence[Shard]: ...
    @property
    def scratch_bytes(self) -> int:
        """The most that a build downloads to the disk only to read it; 0 when everything is on this machine."""
        ...

    def auxiliary_files(self) -> Mapping[str, bytes]:
        """The files beside the weights, by their path in the source."""
        ...

    def open(self, shard: str, prefetch: str | None = None) -> AbstractContextManager[ShardReader]:
        """Wait until the shard is on this machine; `prefetch` names the shard that will be opened next.

        Raises:
            SourceError: it cannot be obtained, or is damaged.
        """
        ...


def parse_config(text: bytes) -> dict[str, Any]:
    """config.json of a source, `spelled_out`. Raises SourceError."""
    try:
        config = read_json(text)
    except ValueError:
        raise SourceError("The source's config.json is not valid JSON.") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise SourceError("The source's config.json names no model_type.")
    return spelled_out(config)


@dataclass(frozen=True, slots=True)
class HubOptions:
    """`scratch` holds shards while they are in use, unless they are kept in the Hub's cache (`keep`).

    `on_wait` is called while a shard is awaited: its name, the bytes that have arrived, and its size.
    """

    scratch: Path | None = None
    keep: bool = True
    offline: bool = False
    timeout_s: float = 30
    backoff_s: float = 1
    on_wait: Callable[[str, int, int], None] = lambda shard, arrived, size: None


@contextlib.contextmanager
def read_errors(name: str) -> Iterator[None]:
    """Turn an OSError while reading `name` into a sentence."""
    try:
        yield
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror or type(error).__name__}.") from error


def read_at(file: int, into: memoryview, position: int, name: str) -> None:
    """Fill `into` from an open file; any number of threads at once. Raises SourceError where it ends within `name`."""
    done = 0
    while done < len(into):
        count = os.preadv(file, [into[done:]], position + done)
        if count == 0:
            raise SourceError(f"The file ends inside {name}: it was truncated while it was read.")
        done += count
