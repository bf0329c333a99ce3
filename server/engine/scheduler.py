"""Who starts, and whose prompt is read next. Pure: no tensors, no clock, no sockets; tested with integers.

A slot is one sequence in the batch. Within a client, requests start first come, first served; among clients the one
with the fewest slots comes first, then the one that was served longest ago. So a client that sends hundreds waits for
itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from server.engine_client.protocol import Generate

# How often a prompt may be passed over for shorter ones of its client before it gets a slice.
_PATIENCE = 4


class Scheduler:
    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._queues: dict[str, deque[Generate]] = {}
        self._running: dict[int, str] = {}
        # When each client last got a slot, counted in slots given.
        self._served: dict[str, int] = {}
        self._given = 0

    @property
    def running(self) -> frozenset[int]:
        return frozenset(self._running)

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def add(self, request: Generate) -> None:
        self._queues.setdefault(request.client, deque()).append(request)

    def admit(self, fits: Callable[[Generate], bool] = lambda request: True) -> Iterator[Generate]:
        """The requests that start now, each taking a slot. One that does not fit holds back all behind it, or small
        requests would keep it waiting for ever."""
        while self._queues and len(self._running) < self._slots:
            client = min(self._queues, key=self._turn)
            if not fits(self._queues[client][0]):
                return
            request = self._queues[client].popleft()
            self._drop_if_idle(client)
            self._given += 1
            self._served[client] = self._given
            self._running[request.id] = client
            yield request

    def release(self, id: int) -> bool:
        """Give back what `id` holds; True when that was a slot (and not a place in the queue, or nothing)."""
        if id in self._running:
            client = self._running.pop(id)
            if client not in self._queues and client not in self._running.values():
                self._served.pop(client, None)
            return True
        for client, queue in list(self._queues.items()):
            self._queues[client] = deque(r for r in queue if r.id != id)
            self._drop_if_idle(client)
        return False

    def _turn(self, client: str) -> tuple[int, int]:
        held = sum(holder == client for holder in self._running.values())
        return held, self._served.get(client, 0)

    def _drop_if_idle(self, client: str) -> None:
        if not self._queues[client]:
            del self._queues[client]


class Reading(Protocol):
    """A prompt that is being read. `passed_over`: how often others of its client were read before it since its last
    slice.

    `after`: an earlier request with the same prompt, worth waiting for, since what it reads is then read for both.
    """

    passed_over: int
    after: int | None

    @property
    def id(self) -> int: ...
    @property
    def client(self) -> str: ...
    @property
    def remaining(self) -> int:
        """Tokens left."""
        ...


R = TypeVar("R", bound=Reading)


class Rotation:
    """Whose slice is next. Clients by the prompt tokens read for them, so that a long prompt slows nobody else's;
    within a client the shortest first, so that a question behind a pasted file waits for one slice only."""

    def __init__(self) -> None:
        self._read: dict[str, int] = {}

    def next(self, readings: Sequence[R]) -> R:
        """`readings` in order of arrival, not empty."""
        ids = {reading.id for reading in readings}
        readings = [reading for reading in readings if reading.after not in ids]
        clients = {reading.client for reading in readings}
        # Who comes newly, or again, starts level with the one served least: past idleness earns nothing.
        level = min((self._read[c] for c in clients if c in self._read), default=0)
        self._read = {client: self._read.get(client, level) for client in clients}
        shortest = {c: min(r.remaining for r in readings if r.client == c) for c in clients}
        client = min(clients, key=lambda c: (self._read[c], shortest[c]))
        mine = [reading for reading in readings if reading.client == client]
        patient = next((reading for reading in mine if reading.passed_over >= _PATIENCE), None)
        chosen = patient or min(mine, key=lambda reading: reading.remaining)
        for reading in mine:
            reading.passed_over += 1
        chosen.passed_over = 0
        return chosen

    def read(self, client: str, tokens: int) -> None:
        self._read[client] = self._read.get(client, 0) + tokens
