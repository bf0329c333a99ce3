"""What only the device can say or do: the bytes it recommends, what stays wired, what MLX may keep, waiting for it.

Engine process. The Metal part is behind this interface; it was tested with stand-ins for MLX (`tests/support/metal.py`)
and has not been run on Metal.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import mlx.core as mx

# Freed buffers that MLX may keep for the next allocation: a fraction of what the weights leave, and bytes at most. Kept
# by bound, never cleared after each chunk: under a wired limit such churn has brought whole Macs down.
_CACHE_SHARE = 8
_MOST_CACHE = 2 * 10**9


class Device:
    def __init__(self, backend: Any = mx) -> None:
        self._mx = backend
        info = backend.device_info()
        # Bytes that Metal recommends for all that is in use; 0 where there is no such limit.
        self.recommended = int(info.get("max_recommended_working_set_size") or 0)

    @property
    def is_metal(self) -> bool:
        return self.recommended > 0

    @property
    def works_ahead(self) -> bool:
        """Whether it can be given a whole pass while it works on another: on the CPU MLX takes a few operations ahead,
        and whoever orders more waits until they are done."""
        return self.is_metal

    def memory_limit(self, wanted: int) -> int:
        """Bytes for the whole engine: `wanted` (0: no limit), within what is recommended."""
        return min((limit for limit in (wanted, self.recommended) if limit), default=sys.maxsize)

    def prepare(self, limit: int, weights: int) -> None:
        """For `weights` bytes of weights in `limit` bytes: bound what MLX keeps beside them, and have it let go of that
        before it takes more than `limit`."""
        self._mx.set_cache_limit(min(max(0, limit - weights) // _CACHE_SHARE, _MOST_CACHE))
        self._mx.set_memory_limit(limit)

    def wire(self) -> None:
        """Keep what is in use now in memory between requests: the weights, when just they have been loaded.

        Only them: KV caches and activations come and go, and a limit that holds them too has ended in kernel panics
        (ml-explore/mlx#3186), no wiring at all in decoding ten times slower (mlx-lm#652). What MLX keeps of the load
        would take their place, so it goes first.
        """
        if self.is_metal:
            self.let_go()
            self._mx.set_wired_limit(min(self.active, self.recommended))

    def wait(self) -> None:
        """Until all that is under way is done. Raises what failed and was not reported yet."""
        self._mx.synchronize()

    def let_go(self) -> None:
        """Give back what MLX keeps for reuse. It waits first: no buffer in use is taken from the device."""
        self.wait()
        self._mx.clear_cache()

    def let_go_after_a_failure(self) -> None:
        """`let_go`, whatever else is reported meanwhile."""
        with contextlib.suppress(Exception):
            self.wait()
        self._mx.clear_cache()

    @property
    def active(self) -> int:
        """Bytes in use."""
        return int(self._mx.get_active_memory())
