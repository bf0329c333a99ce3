"""Who runs and who waits. Pure: no tensors, no clock, no sockets; tested with integers.

First come, first served into a fixed number of slots. A slot is one sequence in the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from server.engine.messages import Generate


class Scheduler:
    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._waiting: deque[Generate] = deque()
        self._running: set[int] = set()

    @property
    def running(self) -> frozenset[int]:
        return frozenset(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, request: Generate) -> None:
        self._waiting.append(request)

    def admit(self) -> Iterator[Generate]:
        """The requests that start now, each taking a slot."""
        while self._waiting and len(self._running) < self._slots:
            request = self._waiting.popleft()
            self._running.add(request.id)
            yield request

    def release(self, id: int) -> bool:
        """Give back what `id` holds; True when that was a slot (and not a place in the queue, or nothing)."""
        if id in self._running:
            self._running.remove(id)
            return True
        self._waiting = deque(r for r in self._waiting if r.id != id)
        return False
