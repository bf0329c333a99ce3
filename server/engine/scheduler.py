"""Who starts, and whose prompt is read next. Pure: no tensors, no clock, no sockets; tested with integers.

A slot is one sequence in the batch. Within a client, requests start first come, first served; among clients the one
with the fewest slots comes first, then the one that was served longest ago. So a client that sends hundreds of requests
delays only itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from server.engine_client.protocol import Request

# A prompt gets a chunk after this many that went to shorter ones of its client.
_MAX_AGE = 4


class Scheduler:
    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._queues: dict[str, deque[Request]] = {}
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

    def add(self, request: Request) -> None:
        self._queues.setdefault(request.client, deque()).append(request)

    def admit(self, fits: Callable[[Request], bool] = lambda request: True) -> Iterator[Request]:
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


class PendingPrefill(Protocol):
    """A prompt that can be read. `age`: chunks that other prompts of its client got since its own last one."""

    age: int

    @property
    def id(self) -> int: ...
    @property
    def client(self) -> str: ...
    @property
    def remaining(self) -> int:
        """Tokens left."""
        ...


P = TypeVar("P", bound=PendingPrefill)


class PrefillScheduler:
    """Whose prefill chunk is next. Clients by the prompt tokens read for them, so that a long prompt slows nobody
    else's; within a client the shortest first, so that a question behind a pasted file waits for one chunk only, with
    aging, so that the long ones are not starved."""

    def __init__(self) -> None:
        self._tokens_read: dict[str, float] = {}

    def next(self, pending: Sequence[P]) -> P:
        """`pending` in order of arrival, not empty."""
        clients = {prefill.client for prefill in pending}
        # A client that is new, or back, starts level with the one served least: past idleness earns nothing.
        level = min((self._tokens_read[c] for c in clients if c in self._tokens_read), default=0)
        self._tokens_read = {client: self._tokens_read.get(client, level) for client in clients}
        shortest = {c: min(p.remaining for p in pending if p.client == c) for c in clients}
        client = min(clients, key=lambda c: (self._tokens_read[c], shortest[c]))
        candidates = [prefill for prefill in pending if prefill.client == client]
        aged = next((prefill for prefill in candidates if prefill.age >= _MAX_AGE), None)
        chosen = aged or min(candidates, key=lambda prefill: prefill.remaining)
        for prefill in candidates:
            prefill.age += 1
        chosen.age = 0
        return chosen

    def charge(self, client: str, tokens: float) -> None:
        """`tokens` prompt tokens were read for `client`."""
        self._tokens_read[client] = self._tokens_read.get(client, 0) + tokens
