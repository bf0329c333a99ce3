"""Wakes all waiters at the next change of something. On one event loop, without a task for each waiter."""

from __future__ import annotations

import asyncio


class Notifier:
    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def notify(self) -> None:
        """Wake all current waiters."""
        future, self._next = self._next, None
        if future is not None:
            future.set_result(None)

    def next(self) -> asyncio.Future[None]:
        """Done at the next notification: for `asyncio.wait`, among others. Shared, so never to be cancelled."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        return self._next

    async def wait(self) -> None:
        await asyncio.shield(self.next())
