"""How the memory limit of a build is divided: its threads, and the size of the blocks they work on."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pydantic import ByteSize, TypeAdapter, ValidationError

from quantize.errors import QuantizeError
from quantize.machine import metal_limit

# Python, MLX and mlx-lm's model classes, with a tree of unevaluated weights.
_BASE_BYTES = 250_000_000
# Larger blocks are not faster: these fit a CPU's cache, and are enough to keep a GPU busy.
_LARGEST_BLOCK = 8_000_000
_SMALLEST_BLOCK = 500_000
# A block exists as bytes, as an array, and quantized; the rest is MLX's cache and what malloc retains.
_COPIES = 5
_MOST_THREADS = 8
# Of what a Mac's GPU may use: the KV cache of a few thousand tokens, and what a prefill computes with.
_BESIDE_A_MODEL = 1_000_000_000


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    threads: int
    block_bytes: int

    @property
    def cache_bytes(self) -> int:
        """What MLX may keep of freed arrays."""
        return self.threads * self.block_bytes

    @property
    def peak_bytes(self) -> int:
        """Resident, at most; measured by tests."""
        return _BASE_BYTES + self.threads * self.block_bytes * _COPIES


def plan_memory(limit: int) -> MemoryPlan:
    """Raises QuantizeError when `limit`, in bytes, is too small for any build."""
    threads = min(max(os.cpu_count() or 2, 2), _MOST_THREADS)
    block = min(_LARGEST_BLOCK, (limit - _BASE_BYTES) // (threads * _COPIES))
    if block < _SMALLEST_BLOCK:
        least = _BASE_BYTES + threads * _SMALLEST_BLOCK * _COPIES
        raise QuantizeError(f"A build needs a memory limit of at least {least / 1e9:.2f} GB.")
    return MemoryPlan(threads, block)


def parse_bytes(text: str) -> int:
    """`3GB` and `3GiB` -> bytes. Raises QuantizeError."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise QuantizeError(f"{text} is not an amount of memory; write 3GB or 900MB.") from None


@dataclass(frozen=True, slots=True)
class Mac:
    """`memory_bytes`: all of it. A Mac that is sold with 16 GB has 16 GiB."""

    memory_bytes: int

    @property
    def metal_bytes(self) -> int:
        return metal_limit(self.memory_bytes)

    @property
    def tensor_bytes(self) -> int:
        """What the weights of a model may take there."""
        return self.metal_bytes - _BESIDE_A_MODEL


def parse_mac(text: str) -> Mac:
    """`16GB` or `16GiB`, which are the same. Raises QuantizeError."""
    # A number that is not known to be one is repeated as it was given.
    parse_bytes(text)
    mac = Mac(parse_bytes(text.upper().replace("GIB", "GB").replace("GB", "GiB")))
    if mac.tensor_bytes <= 0:
        raise QuantizeError(f"A Mac of {text} has no room for a model.")
    return mac
