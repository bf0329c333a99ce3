"""Whose turn it is where one thing is done at a time. HTTP process."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class Turns:
    """One at a time; among those who wait, the client that was served longest ago, then the order of arrival."""

    def __init__(self) -> None:
        self._busy = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        if self._busy:
            mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(client, deque()).append(mine)
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():
                    self._pass_on()
                raise
        self._busy = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            # A client that still waits goes to the end, so that the next turn is another's.
            client = next(iter(self._waiting))
            queue = self._waiting.pop(client)
            first = queue.popleft()
            if queue:
                self._waiting[client] = queue
            if not first.done():
                first.set_result(None)
                return
        self._busy = False
