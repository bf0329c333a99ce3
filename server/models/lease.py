"""The right of one request to use the resident engine. HTTP process, on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from server.engine_client.client import EngineClient


class Lease:
    """Wait for `granted`, then `release`, whatever came of it. `on_end` is told whether it had been granted."""

    def __init__(self, on_end: Callable[[bool], None]) -> None:
        self.granted: asyncio.Future[EngineClient] = asyncio.get_running_loop().create_future()
        self._on_end = on_end
        self._released = False

    @property
    def waiting(self) -> bool:
        return not self.granted.done()

    def release(self) -> None:
        """Also of a lease that is still waiting. Again is harmless."""
        if self._released:
            return
        self._released = True
        was_granted = not self.waiting and not self.granted.cancelled() and self.granted.exception() is None
        self.granted.cancel()
        self._on_end(was_granted)

    def refuse(self, error: Exception) -> None:
        if self.waiting:
            self.granted.set_exception(error)
            # The holder may be about to leave without looking.
            self.granted.exception()
