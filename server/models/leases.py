"""Who waits for one model and who uses it, and for how long nobody has. HTTP process, on the event loop."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

from server.engine_client.client import EngineClient
from server.errors import ConfigiError
from server.models.lease import Lease


class Leases:
    """`on_end` is called whenever one has ended; `on_idle` when the model has been in memory without any for as long as
    it was to stay: `idle_s`, or what the last request asked that had a wish."""

    def __init__(self, idle_s: float, on_end: Callable[[], None], on_idle: Callable[[], None]) -> None:
        self._idle_s = idle_s
        self._on_end = on_end
        self._on_idle = on_idle
        self._waiting: deque[Lease] = deque()
        self._granted: set[Lease] = set()
        self._in_memory = False
        self._timer: asyncio.TimerHandle | None = None
        # As the last request asked that had a wish; it holds until the model is unloaded.
        self._keep_alive_s: float | None = None

    @property
    def wanted(self) -> bool:
        """Whether a request waits for the model."""
        return bool(self._waiting)

    @property
    def in_use(self) -> bool:
        return bool(self._granted)

    def ask(self, keep_alive_s: float | None = None) -> Lease:
        """One that waits, until `grant` or `refuse`."""
        lease = Lease(self._ended, keep_alive_s)
        self._waiting.append(lease)
        return lease

    def grant(self, engine: EngineClient) -> None:
        """In order of arrival, those that wait."""
        while self._waiting:
            lease = self._waiting.popleft()
            lease.grant(engine)
            self._granted.add(lease)
            if lease.keep_alive_s is not None:
                self._keep_alive_s = lease.keep_alive_s
            self._stop_timer()

    def refuse(self, error: ConfigiError) -> None:
        while self._waiting:
            self._waiting.popleft().refuse(error)

    def model_loaded(self) -> None:
        self._in_memory = True
        self._await_requests()

    def model_unloaded(self) -> None:
        """By whatever means; those that use it end by themselves."""
        self._in_memory = False
        self._keep_alive_s = None
        self._stop_timer()

    def _ended(self, lease: Lease) -> None:
        if lease in self._granted:
            self._granted.remove(lease)
            if not self._granted:
                self._await_requests()
        elif lease in self._waiting:
            self._waiting.remove(lease)
        self._on_end()

    def _await_requests(self) -> None:
        self._stop_timer()
        # 0 is never in the settings, and at once in a request.
        seconds = self._idle_s if self._keep_alive_s is None else self._keep_alive_s
        if seconds < math.inf and self._in_memory:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._on_idle)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
