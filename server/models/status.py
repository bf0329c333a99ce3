"""The states of a model, as `/ready`, `configi status`, `/metrics` and waiting streams show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from quantize.pace import pace_text

# absent: not in memory (its files may be on disk).
State = Literal["absent", "fetching", "building", "loading", "ready", "unloading", "failed"]
STATES: tuple[State, ...] = ("absent", "fetching", "building", "loading", "ready", "unloading", "failed")


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model now. `done`/`total` are bytes of the running transfer (total None = unknown); `text` is one line.

    `context_length` is the model's own; `context_length_now`, at most that, is what there is memory for while it is in
    memory, and None otherwise. `batched`: whether its requests share forward passes; None before it was in memory.
    """

    id: str
    state: State
    text: str
    done: int = 0
    total: int | None = None
    context_length: int | None = None
    context_length_now: int | None = None
    batched: bool | None = None
    # Something about its files that its users should know.
    warning: str | None = None
    # Bytes a second of the running transfer; None while that cannot be told.
    rate: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """Of the running transfer, at the speed of its last seconds."""
        return None if self.total is None or not self.rate else (self.total - self.done) / self.rate

    @property
    def told(self) -> dict[str, Any]:
        """What it does and how far it is, for programs: the same names wherever it is told."""
        left = self.seconds_left
        return {
            "state": self.state,
            "text": self.text,
            "done": self.done,
            "total": self.total,
            "bytes_per_second": None if self.rate is None else round(self.rate),
            "seconds_left": None if left is None else round(left, 1),
        }

    @property
    def line(self) -> str:
        """`text` with the rate and the time left, for logs and plain terminals."""
        return f"{self.text}{pace_text(self.rate, self.seconds_left)}"
