"""One exchange as the guard sees it: the body on its way in, the answer on its way out. HTTP process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from server.errors import BodyTooLarge, ConfigiError, RequestTooSlow
from server.http.budget import BodyShare
from server.http.dialect import Dialect
from server.settings.types import ServerSettings

access = logging.getLogger("configi.access")

# The rest of a body that nobody reads: less is waited for, more costs its sender the connection.
_DRAINED_BYTES = 64 * 1024
# For so long it is still taken from who gets an answer before it was all there, after so long at most in a queue.
_DRAIN_S, _DRAIN_WAIT_S = 2.0, 4.0


class Body:
    """`receive` with bounds on size, budget and time until the body is there; afterwards the plain one.

    `unreadable`: raised for who reads it. A route that does not, or a path that is none, has better to say.
    `owed`: bytes that have been announced; infinite when nobody knows how many. `received`: those that have come.
    """

    def __init__(
        self,
        receive: Receive,
        settings: ServerSettings,
        share: BodyShare,
        drains: asyncio.Semaphore,
        owed: float,
        unreadable: ConfigiError | None = None,
    ) -> None:
        self._unreadable = unreadable
        self.share = share
        self._drains = drains
        self._receive = receive
        self._owed = owed
        self._settings = settings
        self._deadline = asyncio.get_running_loop().time() + settings.body_timeout_s
        self.received = 0
        self._complete = False

    async def receive(self) -> Message:
        if self._unreadable is not None:
            raise self._unreadable
        if self._complete:
            # Whoever asks again is about to parse it, or has, and looks whether its client is still there.
            self.share.give_back()
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            seconds = self._settings.body_timeout_s
            raise RequestTooSlow(f"The request body did not arrive within {seconds:g} s.") from None
        self.received += len(message.get("body", b""))
        if self.received > self._settings.max_body:
            raise too_large(self._settings)
        self.share.grow(self.received)
        self._complete = not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Let what is still to come go by for a moment: to close on unread bytes resets the connection, and a client
        that is sending would never see its answer."""
        self.share.give_back()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_WAIT_S), self._drains, asyncio.timeout(_DRAIN_S):
                while self.rest and self.received <= 2 * self._settings.max_body:
                    message = await self._receive()
                    self.received += len(message.get("body", b""))
                    self._complete = not message.get("more_body", False)

    @property
    def rest(self) -> float:
        """Bytes that are still to come, and that nobody reads once there is an answer."""
        return 0 if self._complete else self._owed - self.received


class Exchange:
    """One answer on its way out: it starts once, carries its id, and is logged with its status.

    `client` is the name of the accepted key; empty before there is one.
    """

    def __init__(self, request_id: str, dialect: Dialect, send: Send, body: Body) -> None:
        self.request_id = request_id
        self.client = ""
        self.status = 0
        self._body = body
        self._drains = False
        self._dialect = dialect
        self._id_headers = ("x-request-id", *([dialect.id_header] if dialect.id_header else ()))
        self.extra: list[tuple[bytes, bytes]] = []
        self._send = send
        self._start = time.monotonic()

    async def send(self, message: Message) -> None:
        """The app's `send`; beyond the first message it only passes on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                *((name.encode(), self.request_id.encode()) for name in self._id_headers),
                *self.extra,
            ]
            if self.status in (408, 413) or self._body.rest > _DRAINED_BYTES:
                # Nothing more can be read from this connection before the rest of a body that nobody wants.
                message["headers"].append((b"connection", b"close"))
                # After the time for a body is over, it is not waited for any more.
                self._drains = self.status != 408
        elif self._drains and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._body.drain()
            message = {"type": "http.response.body"}
        await self._send(message)

    async def fail(self, error: ConfigiError) -> None:
        """Answer with `error`, unless the app's answer is under way."""
        if not self.status:
            await self.answer(error.status, *self._dialect.answer(error))

    async def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        raw.append((b"content-length", str(len(body)).encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})

    def log_access(self, scope: Scope) -> None:
        fields = {
            "request_id": self.request_id,
            "method": scope["method"],
            # Escaped: a path may hold what a terminal would obey.
            "path": scope["path"].encode("unicode_escape").decode()[:500],
            "status": self.status,
            "ms": round((time.monotonic() - self._start) * 1000),
        }
        if self.client:
            fields["client"] = self.client
        access.info("request", extra=fields)


def owed_bytes(headers: Headers) -> float:
    """Bytes of a body as announced; infinite when it has no length, or two, or may never be sent (Expect)."""
    if "transfer-encoding" in headers or "expect" in headers:
        return math.inf
    return int(headers.get("content-length", "0"))


def too_large(settings: ServerSettings) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {settings.max_body} bytes.")
