"""What is known of one configured model: its state, its files, its last failure, who waits for it. HTTP process."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from server.errors import ConfigiError, EngineFailed, ModelUnavailable
from server.models.lease import Lease
from server.models.status import ModelStatus, State
from server.settings.types import ModelSettings

log = logging.getLogger("configi.models")

T = TypeVar("T")


class ModelRecord(Generic[T]):
    """`opened` is what the HTTP process has read from `folder`; both are set together, and forgotten at a failure."""

    def __init__(self, entry: ModelSettings, on_change: Callable[[], None]) -> None:
        text = "not loaded yet; the first request loads it"
        self.entry = entry
        self.status = ModelStatus(entry.id, "absent", text, context_length=entry.context_length)
        self.folder: Path | None = None
        self.opened: T | None = None
        self.opening: asyncio.Task[T] | None = None
        self.loading: asyncio.Task[None] | None = None
        self.queue: deque[Lease] = deque()
        self._on_change = on_change
        self._error: ConfigiError | None = None
        self._failed_at = 0.0

    @property
    def wanted(self) -> bool:
        """Whether a request waits for it."""
        return any(lease.waiting for lease in self.queue)

    def set(self, state: State, text: str, done: int = 0, total: int | None = None) -> None:
        if self.status.state != state:
            log.info("model %s: %s (%s)", self.entry.id, state, text)
        self.status = replace(self.status, state=state, text=text, done=done, total=total)
        self._on_change()

    def rest(self) -> None:
        """Its files are here, its weights are not in memory."""
        self.set("absent", "on disk, not in memory")

    def fail(self, error: Exception) -> ConfigiError:
        """Remember `error` as what users are told. Its files are looked at anew by the next try: they may be mended."""
        if isinstance(error, EngineFailed):
            # It describes one try; after the last one it is the model that is unavailable.
            error = ModelUnavailable(f"The model could not be loaded: {error.message}")
        elif not isinstance(error, ConfigiError):
            log.error("model %s failed", self.entry.id, exc_info=error)
            error = ModelUnavailable("The model cannot be had; the server's log has the reason.")
        self._error, self._failed_at = error, time.monotonic()
        self.folder = self.opened = None
        self.set("failed", error.message)
        return error

    def raise_failure(self, pause_s: float = math.inf) -> bool:
        """Raise the failure of less than `pause_s` ago; an older one is forgotten. True when one was."""
        if self._error is None:
            return False
        if time.monotonic() - self._failed_at < pause_s:
            raise self._error.with_traceback(None)
        self._error = None
        self.set("absent", "trying again")
        return True
