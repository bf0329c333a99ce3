"""The right of one request to use the engine of a model. HTTP process, on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from server.engine_client.client import EngineClient


class Lease:
    """Wait for `granted`, never cancelling it. Leaving the `with` gives the lease back, also one that still waits.

    `keep_alive_s`: how long the model is to stay in memory when nobody uses it any more; None has no opinion.
    """

    def __init__(self, on_end: Callable[[Lease], None], keep_alive_s: float | None = None) -> None:
        self.granted: asyncio.Future[EngineClient] = asyncio.get_running_loop().create_future()
        self.keep_alive_s = keep_alive_s
        self._on_end = on_end

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._on_end(self)

    def grant(self, engine: EngineClient) -> None:
        self.granted.set_result(engine)

    def refuse(self, error: Exception) -> None:
        self.granted.set_exception(error)
        # The holder may be about to leave without looking at it.
        self.granted.exception()
