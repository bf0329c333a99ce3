"""What a Mac's GPU does to an engine, without one: its limits, its errors, and how long a forward pass takes there.

After public reports and MLX's own source; nothing here was taken from a run of this project on Metal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_COMMAND_BUFFER = "[METAL] Command buffer execution failed: "

# As issue threads quote them, with what each means: that there is no memory, or another failure of the GPU.
OUT_OF_MEMORY = _COMMAND_BUFFER + "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"
IGNORED = (
    _COMMAND_BUFFER + "Ignored (for causing prior/excessive GPU errors) "
    "(00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)"
)
LOST = {
    OUT_OF_MEMORY: "memory",
    _COMMAND_BUFFER + "Insufficient Memory": "memory",
    _COMMAND_BUFFER + "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout).": "internal",
    _COMMAND_BUFFER + "Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)": "internal",
    IGNORED: "internal",
    _COMMAND_BUFFER + "Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)": "internal",
}
_TOO_MUCH_WIRED = "Setting a wired limit larger than the maximum working set size is not allowed."
# Said by MLX's allocator before anything ran: the process is as good as before.
NO_ROOM = (
    "[metal::malloc] Attempting to allocate 48736917632 bytes which is greater than the maximum allowed buffer size "
    "of 30150672384 bytes.",
    "[metal::malloc] Resource limit (499000) exceeded.",
    "[malloc] Unable to allocate 99 bytes.",
)


@dataclass(frozen=True)
class Pace:
    """A forward pass over n tokens takes `sweep_s + n * token_s`: the weights are swept once, whatever n is. Below
    `cliff_tokens` the experts of a mixture take the slow kernel, which costs each token `cliff_factor` as much."""

    sweep_s: float
    token_s: float
    cliff_tokens: int = 64
    cliff_factor: float = 3.0

    def seconds(self, tokens: int) -> float:
        slow = 1 < tokens < self.cliff_tokens
        return self.sweep_s + tokens * self.token_s * (self.cliff_factor if slow else 1)


# Gemma 4 26B-A4B at about 4 bits; prefill as published or estimated.
M4_MAX = Pace(0.022, 1 / 2400)
M2_PRO = Pace(0.060, 1 / 300)
M1 = Pace(0.176, 1 / 150)


@dataclass
class FakeMetal:
    """The part of `mlx.core` that `Device` speaks to. `recommended`, `active` (in use), `cached` (kept): bytes."""

    recommended: int
    active: int = 0
    cached: int = 0
    told: dict[str, int] = field(default_factory=dict)
    # In order: what was done that has an order.
    done: list[str] = field(default_factory=list)
    # Reported at the next wait, once.
    pending: str | None = None

    def device_info(self) -> dict[str, Any]:
        return {"device_name": "Apple M0", "max_recommended_working_set_size": self.recommended}

    def set_wired_limit(self, limit: int) -> int:
        if limit > self.recommended:
            raise ValueError(f"[metal::set_wired_limit] {_TOO_MUCH_WIRED}")
        self.done.append("wire")
        self.told["wired"] = limit
        return 0

    def set_cache_limit(self, limit: int) -> int:
        self.told["cache"] = limit
        return 0

    def set_memory_limit(self, limit: int) -> int:
        self.told["memory"] = limit
        return 0

    def get_active_memory(self) -> int:
        return self.active

    def synchronize(self) -> None:
        self.done.append("wait")
        if (error := self.pending) is not None:
            self.pending = None
            raise RuntimeError(error)

    def clear_cache(self) -> None:
        self.done.append("clear")
        self.cached = 0


@contextmanager
def failing(kind: Any, error: str, token: int) -> Iterator[None]:
    """Meanwhile models of this class raise `error` whenever they are to read `token`."""
    forward = kind.__call__

    def fails(self: Any, tokens: Any, *others: Any, **named: Any) -> Any:
        if any(token in row for row in tokens.tolist()):
            raise RuntimeError(error)
        return forward(self, tokens, *others, **named)

    kind.__call__ = fails
    try:
        yield
    finally:
        kind.__call__ = forward
