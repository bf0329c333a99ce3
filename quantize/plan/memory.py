"""How much memory a build may take, and what that leaves for each of its threads."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pydantic import ByteSize, TypeAdapter, ValidationError

from quantize.errors import QuantizeError

# Python, MLX and mlx-lm's model classes, with a tree of unevaluated weights.
_BASE_BYTES = 250_000_000
# Larger blocks are no faster: these fit a CPU's cache, and are enough for a GPU to be busy.
_LARGEST_BLOCK = 8_000_000
_SMALLEST_BLOCK = 500_000
# A block is there as bytes, as an array, and quantized; the rest is MLX's cache and what malloc keeps.
_COPIES = 5
_MOST_THREADS = 8


@dataclass(frozen=True, slots=True)
class Share:
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


def share(limit: int) -> Share:
    """Raises QuantizeError when `limit`, in bytes, is too small for any build."""
    threads = min(max(os.cpu_count() or 2, 2), _MOST_THREADS)
    block = min(_LARGEST_BLOCK, (limit - _BASE_BYTES) // (threads * _COPIES))
    if block < _SMALLEST_BLOCK:
        least = _BASE_BYTES + threads * _SMALLEST_BLOCK * _COPIES
        raise QuantizeError(f"A build needs a memory limit of {least / 1e9:.2f} GB or more.")
    return Share(threads, block)


def parse_bytes(text: str) -> int:
    """`3GB` and `3GiB` -> bytes. Raises QuantizeError."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise QuantizeError(f"{text} is no amount of memory; write 3GB or 900MB.") from None
