"""A checkpoint to build from, whatever holds it: a folder of safetensors, a Hub repository, a GGUF file.

What all of them show is here, and nothing else knows which it is. Headers are read first (`tensors`), weights only when
a shard is opened, a few rows at a time.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from quantize.errors import SourceError

if TYPE_CHECKING:
    import mlx.core as mx

# Beside the weights: tokenizer, template, generation defaults, licence. Copied byte for byte.
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
    "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt",
)  # fmt: skip
_FP8_SCALE = "_scale_inv"


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """`dtype` is that of the rows read; `scale` names the companion of an fp8 tensor, which is read as BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    nbytes: int
    scale: str | None = None

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape as rows and columns; leading axes are folded into the rows."""
        return math.prod(self.shape[:-1]), self.shape[-1] if self.shape else 1


@dataclass(frozen=True, slots=True)
class Shard:
    name: str
    size: int


class ShardReader(Protocol):
    def rows(self, tensor: SourceTensor, start: int, stop: int) -> mx.array:
        """Rows of `tensor.matrix`, as (stop - start, columns). From several threads at once."""
        ...


class Checkpoint(Protocol):
    """`identity` changes whenever the bytes may have; `revision` is a commit of `repository` when that is known.

    `tensors` are in the order of the shards and of their bytes in them.
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
        """What a build puts on the disk, at most, only to read it: 0 when everything is on this machine."""
        ...

    def companions(self) -> Mapping[str, bytes]:
        """The small files beside the weights."""
        ...

    def open(self, shard: str, then: str | None = None) -> AbstractContextManager[ShardReader]:
        """Waits until the shard is on this machine; meanwhile and while it is read, `then` may be fetched.

        Raises:
            SourceError: it cannot be had, or is damaged.
        """
        ...


def with_fp8_scales(tensors: Sequence[SourceTensor]) -> dict[str, SourceTensor]:
    """Scales go into the tensors that they belong to. Raises SourceError for an fp8 tensor without."""
    by_name = {tensor.name: tensor for tensor in tensors}
    found: dict[str, SourceTensor] = {}
    for tensor in tensors:
        if tensor.name.endswith(_FP8_SCALE) and tensor.name.removesuffix(_FP8_SCALE) in by_name:
            continue
        if tensor.dtype == "F8_E4M3":
            scale = tensor.name + _FP8_SCALE
            if scale not in by_name or by_name[scale].shard != tensor.shard:
                raise SourceError(f"The fp8 tensor {tensor.name} has no {scale} in its shard: only those are read.")
            tensor = SourceTensor(tensor.name, "BF16", tensor.shape, tensor.shard, tensor.nbytes, scale)
        found[tensor.name] = tensor
    return found


def parse_config(text: bytes) -> dict[str, Any]:
    """config.json of a source. Raises SourceError, also for a model that is quantized already."""
    try:
        config = json.loads(text)
    except ValueError:
        raise SourceError("The source's config.json is not valid JSON.") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise SourceError("The source's config.json names no model_type.")
    given = config.get("quantization") or config.get("quantization_config") or {}
    method = given.get("quant_method", "mlx") if isinstance(given, dict) else "mlx"
    if given and method != "fp8":
        raise SourceError(f"The source is quantized already ({method}); build from the unquantized checkpoint.")
    return config


@dataclass(frozen=True, slots=True)
class HubOptions:
    """`scratch` holds shards while they are used, where they are not kept in the Hub's cache (`keep`).

    `waiting` is told of a shard that a build waits for: its name, the bytes of it that are here, and its size.
    """

    scratch: Path | None = None
    keep: bool = True
    offline: bool = False
    timeout_s: float = 30
    backoff_s: float = 1
    waiting: Callable[[str, int, int], None] = lambda shard, here, size: None


@contextlib.contextmanager
def read_errors(name: str) -> Iterator[None]:
    """An OSError while reading `name`, as a sentence."""
    try:
        yield
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror or type(error).__name__}.") from error
