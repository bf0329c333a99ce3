"""What only the device can say or do: how much memory a model may use, and keeping it there. Runs in the engine
process.

The Metal part stands behind this seam. It was tested with a stand-in for MLX and has not been run on Metal.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import psutil

# Freed buffers that MLX may keep for the next allocation, as a part of the limit.
_CACHE_SHARE = 16


def memory_limit(wanted: int, *, backend: Any = mx) -> int:
    """Bytes for the whole engine: `wanted`, within what the device recommends; called before anything is loaded."""
    recommended = backend.device_info().get("max_recommended_working_set_size")
    most = int(recommended) if recommended else int(psutil.virtual_memory().available)
    return min(wanted, most) if wanted else most


def prepare(limit: int, *, backend: Any = mx) -> None:
    """Keep what is in use wired, or macOS pages weights out between requests; keep MLX's own cache small."""
    if backend.device_info().get("max_recommended_working_set_size"):
        backend.set_wired_limit(limit)
    backend.set_cache_limit(limit // _CACHE_SHARE)
