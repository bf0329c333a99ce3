"""Streams: events of a generation -> server-sent events, whatever the protocol. HTTP process.

The first event is awaited before the response starts, so that what can fail early is an HTTP error. Afterwards an error
is the error event of the stream's dialect, and the dialect's last frame always comes last: a stream never just stops. A
client that leaves, or stalls for longer than the write timeout, closes the generator at once.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import anyio
import msgspec
from sse_starlette import ServerSentEvent
from starlette.types import Receive, Scope, Send

from server.errors import ConfigiError, EngineFailed
from server.http.compat import StalledReader, UncutEventStream
from server.http.dialect import Dialect
from server.settings.types import ServerSettings

E_contra = TypeVar("E_contra", contravariant=True)
E = TypeVar("E")

_log = logging.getLogger("configi.api")


class Renderer(Protocol[E_contra]):
    """One protocol's view of one stream. Frames are whole SSE events, or b"" for nothing."""

    def render(self, event: E_contra) -> bytes: ...

    def end(self) -> bytes:
        """The frames after the last event; raises EngineFailed when the answer is not complete."""
        ...


def frame(payload: Any) -> bytes:
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip: it keeps the connection alive and shows a person with curl what is happening."""
    return f": {' '.join(text.split())}\n\n".encode()


async def stream(
    events: AsyncGenerator[E, None],
    renderer: Renderer[E],
    dialect: Dialect,
    settings: ServerSettings,
    headers: Mapping[str, str],
) -> EventStream[E]:
    try:
        first = await anext(events, None)
    except BaseException:
        await events.aclose()
        raise
    if first is None:
        raise EngineFailed("The generation ended before it began.")
    return EventStream(first, events, renderer, dialect, settings, headers)


class EventStream(UncutEventStream, Generic[E]):
    """sse-starlette's framing, pings and send timeout, with the generation's end tied to the response's."""

    def __init__(
        self,
        first: E,
        events: AsyncGenerator[E, None],
        renderer: Renderer[E],
        dialect: Dialect,
        settings: ServerSettings,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(
            self._frames(first, renderer, dialect),
            headers=headers,
            sep="\n",
            ping=settings.sse_ping_s,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            send_timeout=settings.sse_write_timeout_s,
            client_close_handler_callable=self.note_client_left,
        )
        self._events = events

    async def _frames(self, first: E, renderer: Renderer[E], dialect: Dialect) -> AsyncGenerator[bytes, None]:
        try:
            if frames := renderer.render(first):
                yield frames
            async for event in self._events:
                # Cancelling alone would not end a stream whose next event is always there already.
                if self.client_left:
                    return
                if frames := renderer.render(event):
                    yield frames
            ending = renderer.end()
        except ConfigiError as error:
            ending = dialect.error_event(error)
        except Exception:
            _log.exception("A stream failed after it had started.")
            ending = dialect.error_event(ConfigiError())
        yield ending + dialect.last_frame

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except StalledReader:
            _log.warning("A reader stalled for longer than the write timeout; its stream was ended.")
        finally:
            # Also when `frames` never started, or is suspended at a yield.
            with anyio.CancelScope(shield=True):
                await self._events.aclose()
