"""How many requests run and wait at once, and how they are ended: places. HTTP process, on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from server.engine_client.client import EngineStream
from server.errors import ConfigiError, InvalidRequest, QueueFull, QueueTimeout, ShuttingDown
from server.settings.types import EngineSettings

_SHUTTING_DOWN = "The server is shutting down."


class Places:
    """As many as sequences may run and wait; one for each choice of a request."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._taken = 0
        self._requests: set[Place] = set()
        self._draining = False

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
        place = Place(self._settings.queue_timeout_s)
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

    def __init__(self, queue_timeout_s: float) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue_timeout_s = queue_timeout_s
        self._stream: EngineStream | None = None

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
    def queue(self, stream: EngineStream) -> Iterator[asyncio.TimerHandle]:
        """`stream` ends with the place, and when the timer is not cancelled within `queue_timeout_s`: by a slot."""
        self.check()
        self._stream = stream
        error = QueueTimeout(f"The request waited for {self._queue_timeout_s:g} s without getting a slot.")
        timeout = asyncio.get_running_loop().call_later(self._queue_timeout_s, self.fail, error)
        try:
            yield timeout
        finally:
            timeout.cancel()
            self._stream = None
