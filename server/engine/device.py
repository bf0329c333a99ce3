"""What only the device can do: keep a model in memory, within what it recommends. Runs in the engine process.

The Metal part is behind this interface. It was tested with a stand-in for MLX and has not been run on Metal.
"""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx

# Freed buffers that MLX may keep for the next allocation, as a fraction of the limit.
_CACHE_SHARE = 16


def memory_limit(wanted: int, *, backend: Any = mx) -> int:
    """Bytes for the whole engine: `wanted` (0: no limit), within what Metal recommends to keep wired."""
    recommended = backend.device_info().get("max_recommended_working_set_size") or 0
    return min((limit for limit in (wanted, int(recommended)) if limit), default=sys.maxsize)


def prepare(limit: int, *, backend: Any = mx) -> None:
    """Keep what is in use wired, or macOS pages weights out between requests; keep MLX's own cache small."""
    if backend.device_info().get("max_recommended_working_set_size"):
        backend.set_wired_limit(limit)
    backend.set_cache_limit(limit // _CACHE_SHARE)
