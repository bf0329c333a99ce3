"""How many requests run and wait at once, and how they are ended: places. HTTP process, on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile

from server.chat.deltas import ModelPending
from server.engine_client.client import EngineStream
from server.errors import ConfigiError, InvalidRequest, QueueFull, QueueTimeout, ShuttingDown
from server.models.notifier import Notifier
from server.settings.types import EngineSettings

_SHUTTING_DOWN = "The server is shutting down."
# A slot that is free is given within a step or two.
_NOTICED_S = 1.0


class Places:
    """As many as sequences may run and wait; one for each choice of a request."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._taken = 0
        self._requests: set[Place] = set()
        self._draining = False
        self.queue = Queue(settings.max_concurrent)

    @contextmanager
    def take(self, choices: int) -> Iterator[Place]:
        """A place for a request of so many choices; none needs no room, as when only tokens are counted.

        Raises:
            QueueFull: all are taken.
            InvalidRequest: there are not so many.
            ShuttingDown: none is given any more.
        """
        if self._draining:
            raise ShuttingDown(_SHUTTING_DOWN)
        room = self._settings.max_concurrent + self._settings.queue_limit
        if choices > room:
            raise InvalidRequest(f"n is {choices}; this server has places for {room} choices at once.", param="n")
        if self._taken + choices > room:
            raise QueueFull(f"The queue is full: {self._taken} sequences are running or waiting. Try again later.")
        place = Place(self._settings.queue_timeout_s, self.queue, choices)
        self._taken += choices
        self._requests.add(place)
        try:
            yield place
        finally:
            self._taken -= choices
            self._requests.discard(place)

    def drain(self) -> None:
        """No new requests; those that have a place may finish."""
        self._draining = True

    def end(self) -> None:
        """Whatever still has a place ends with an error."""
        for place in self._requests:
            place.fail(ShuttingDown(_SHUTTING_DOWN))


class Place:
    """Of one request, from its admission to its end. `failed` has the error that ends it early, whatever it waits for.

    `failed` is for `asyncio.wait`, among others, and never to be cancelled.
    """

    def __init__(self, queue_timeout_s: float, queue: Queue, choices: int) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.choices = choices
        self._queue = queue
        self._queue_timeout_s = queue_timeout_s
        self._stream: EngineStream | None = None
        # Its place in the queue, as its client was told it last.
        self._shown: int | None = None

    def fail(self, error: ConfigiError) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)
            # The request may be about to end without looking.
            self.failed.exception()
            if self._stream is not None:
                self._stream.fail(error)

    def check(self) -> None:
        """Raises the error that has ended it."""
        if self.failed.done():
            self.failed.result()

    @contextmanager
    def wait(self, stream: EngineStream) -> Iterator[Callable[[], None]]:
        """`stream` ends with the place, and when it has no slot within `queue_timeout_s`; to be called when it has."""
        self.check()
        self._stream = stream
        error = QueueTimeout(f"The request waited for {self._queue_timeout_s:g} s without getting a slot.")
        timeout = asyncio.get_running_loop().call_later(self._queue_timeout_s, self.fail, error)

        def on_slot() -> None:
            timeout.cancel()
            self._queue.admit(self)

        self._queue.add(self)
        try:
            yield on_slot
        finally:
            timeout.cancel()
            self._queue.remove(self)
            self._stream = None

    async def news(self, stream: EngineStream, model: str) -> ModelPending | None:
        """Where it stands in the queue for a slot, whenever that has changed since the last call; None when the engine
        has begun with it, or it has ended. Those who came earlier are before it; the engine may be fairer."""
        patience_s = None if self._shown else _NOTICED_S
        while not stream.begun.done():
            number = self._queue.number(self)
            if number != self._shown and (self._shown or self._queue.is_full_before(self)):
                return self._show(number, model)
            awaited = {stream.begun, self._queue.changes.next()}
            done, _ = await asyncio.wait(awaited, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                # There are slots, but no memory.
                return self._show(number, model)
        return None

    def _show(self, number: int, model: str) -> ModelPending:
        self._shown = number
        return ModelPending(f"queued: place {number}", "queued", model, number)


class Queue:
    """Who waits for a slot of the engine, in order of arrival, and how many sequences hold one. `changes` notifies."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._waiting: dict[Place, None] = {}
        self._admitted: set[Place] = set()
        self.changes = Notifier()

    def add(self, place: Place) -> None:
        self._waiting[place] = None

    def admit(self, place: Place) -> None:
        if place in self._waiting:
            del self._waiting[place]
            self._admitted.add(place)
            self.changes.notify()

    def remove(self, place: Place) -> None:
        self._waiting.pop(place, None)
        self._admitted.discard(place)
        self.changes.notify()

    def number(self, place: Place) -> int:
        return list(self._waiting).index(place) + 1

    def is_full_before(self, place: Place) -> bool:
        """Whether all slots are taken by who has one, and by who waits before it."""
        before = takewhile(lambda other: other is not place, self._waiting)
        return sum(other.choices for other in (*self._admitted, *before)) >= self._slots
