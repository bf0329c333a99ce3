"""What every request passes first, as pure ASGI: id, Host and Origin, key, content type, body size, budget and time.

HTTP process. A request that fails here costs nothing behind it. Every answer, ours or the app's, leaves with an
`x-request-id`; every error is worded by the dialect of its path. Behind the guard, `state["client"]` of the scope is
who asks: the name of the accepted key, or the peer's address where there are no keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
import uuid
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.allocator import give_back
from server.errors import (
    AuthenticationFailed,
    BodyTooLarge,
    ConfigiError,
    Forbidden,
    HeaderTooLarge,
    InvalidRequest,
    RequestTooSlow,
    UnsupportedMediaType,
)
from server.http.budget import BodyBudget, BodyShare
from server.http.clients import Clients
from server.http.dialect import Dialect, Dialects
from server.http.origins import allowed_names, host_is_allowed, host_name, is_local, origin_is_allowed
from server.http.parser import BodyParser
from server.settings.names import can_be_listed, is_host
from server.settings.types import ServerSettings

log = logging.getLogger("configi.guard")
access = logging.getLogger("configi.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_HEADERS = 128
_MAX_HEADER_BYTES = 64 * 1024
# The rest of a body that nobody reads: less is waited for, more costs its sender the connection.
_DRAINED_BYTES = 64 * 1024
# For so long it is still taken from who gets an answer before it was all there; of so many at once, since a hundred
# that are refused must not take the event loop from who is served; the others wait for that at most so long.
_DRAIN_S, _DRAINS, _DRAIN_WAIT_S = 2.0, 4, 4.0
# Of an answer, what a page may read beside its body.
_EXPOSED = (
    b"x-request-id, request-id, retry-after, x-configi-ignored, x-configi-cached-tokens, x-configi-cache-diverged-at, "
    b"x-configi-cache-diverged-in"
)
_SHOWN_CHARS = 200
_NO_KEY = (
    "The API key is missing or wrong; send it as Authorization: Bearer KEY. It is server.api_key, or one of "
    "server.api_keys, in the server's settings."
)
# After a body of more, what it has taken of memory is given back so long after its request.
_LARGE_BYTES = 2**20
_SETTLED_S = 1.0


class Guard:
    """`on_answer` is told of every answer to a named client: its name and the status."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        dialects: Dialects,
        on_answer: Callable[[str, int], None] = lambda client, status: None,
    ) -> None:
        self._app = app
        self._settings = settings
        self.dialects = dialects
        self._names = allowed_names(settings.host, settings.allowed_hosts)
        self._bound_to_all = settings.host in ("0.0.0.0", "::", "")
        self._clients = Clients(settings.key_digests)
        self._budget = BodyBudget(settings.body_budget)
        self._drains = asyncio.Semaphore(_DRAINS)
        self._parser = BodyParser()
        self._giving_back: asyncio.TimerHandle | None = None
        self._on_answer = on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            try:
                await self._app(scope, receive, send)
            finally:
                await self._parser.close()
            return
        headers = Headers(scope=scope)
        # Base URLs that end in a slash are common: //v1//models.
        scope["path"] = re.sub("/{2,}", "/", scope["path"])
        body = Body(receive, self._settings, self._budget.share(), self._drains, owed=_owes_body(headers))
        exchange = Exchange(_request_id(headers), self.dialects.of(scope["path"]), send, body)
        scope["state"] |= {"request_id": exchange.request_id, "parser": self._parser}
        try:
            _check_size(headers)
            self._check_host(headers)
            self._check_origin(headers, exchange)
            if _is_preflight(scope, headers):
                await exchange.answer(204, b"", _preflight_headers(headers))
                return
            self._identify(scope, headers, exchange)
            self._check_body(scope["method"], headers)
            # HEAD is GET whose body the protocol leaves out.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await self._app({**scope, "method": method}, body.receive, exchange.send)
        except ConfigiError as error:
            await exchange.fail(error)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException:
            # A panic of native code is no Exception.
            log.exception("unhandled error", extra={"request_id": exchange.request_id})
            await exchange.fail(ConfigiError())
        finally:
            body.share.give_back()
            if body.received > _LARGE_BYTES:
                self._give_back_soon()
            exchange.log_access(scope)
            if exchange.client:
                self._on_answer(exchange.client, exchange.status)

    def _give_back_soon(self) -> None:
        """What large bodies leave behind, once for all that end within a moment."""
        if self._giving_back is None:
            self._giving_back = asyncio.get_running_loop().call_later(_SETTLED_S, self._give_back)

    def _give_back(self) -> None:
        self._giving_back = None
        asyncio.get_running_loop().run_in_executor(None, give_back)

    def _check_host(self, headers: Headers) -> None:
        values = headers.getlist("host")
        name = host_name(values[0]) if len(values) == 1 else None
        if name is None:
            raise InvalidRequest("The request needs one valid Host header.")
        if not host_is_allowed(name, self._names, bound_to_all=self._bound_to_all):
            raise Forbidden(f"This host name is not served; add {_entry(name, is_host)} to server.allowed_hosts.")

    def _check_origin(self, headers: Headers, exchange: Exchange) -> None:
        origin = headers.get("origin")
        if origin is None:
            return
        settings = self._settings
        if not origin_is_allowed(origin, headers["host"], settings.allowed_origins, local=settings.local_origins):
            raise Forbidden(_refused(origin))
        exchange.extra = [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"origin"),
        ]

    def _identify(self, scope: Scope, headers: Headers, exchange: Exchange) -> None:
        if not self._clients.named or scope["path"] == "/health":
            address = scope.get("client")
            scope["state"]["client"] = address[0] if address else ""
            return
        name = self._clients.of(headers)
        if name is None:
            raise AuthenticationFailed(_NO_KEY)
        scope["state"]["client"] = exchange.client = name

    def _check_body(self, method: str, headers: Headers) -> None:
        if "transfer-encoding" in headers and "content-length" in headers:
            raise InvalidRequest("Transfer-Encoding and Content-Length exclude each other.")
        if method != "POST":
            return
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise UnsupportedMediaType("Compressed request bodies are not accepted.")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise UnsupportedMediaType("The Content-Type must be application/json.")
        if int(headers.get("content-length", "0")) > self._settings.max_body:
            raise _too_large(self._settings)


class Body:
    """`receive` with bounds on size, budget and time until the body is there; afterwards the plain one.

    `owed`: bytes that have been announced; infinite when nobody knows how many. `received`: those that have come.
    """

    def __init__(
        self, receive: Receive, settings: ServerSettings, share: BodyShare, drains: asyncio.Semaphore, owed: float
    ) -> None:
        self.share = share
        self._drains = drains
        self._receive = receive
        self._owed = owed
        self._settings = settings
        self._deadline = asyncio.get_running_loop().time() + settings.body_timeout_s
        self.received = 0
        self._complete = False

    async def receive(self) -> Message:
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
            raise _too_large(self._settings)
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
        self.extra: list[tuple[bytes, bytes]] = []
        self._send = send
        self._start = time.monotonic()

    async def send(self, message: Message) -> None:
        """The app's `send`; beyond the first message it only passes on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode()),
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


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def _refused(origin: str) -> str:
    """The setting that admits the page, with what to write there."""
    entry = _entry(origin, can_be_listed)
    also = ", or set server.local_origins to true" if is_local(origin) else ""
    return f"Pages of this origin may not call the server; add {entry} to server.allowed_origins{also}."


def _entry(value: str, is_one: Callable[[str], bool]) -> str:
    """As it is written in a list of the settings; what would not be valid there is not repeated."""
    return f'"{value}"' if len(value) <= _SHOWN_CHARS and value.isprintable() and is_one(value) else "it"


def _owes_body(headers: Headers) -> float:
    """Bytes of a body as announced; infinite when it has no length, or two, or may never be sent (Expect)."""
    if "transfer-encoding" in headers or "expect" in headers:
        return math.inf
    return int(headers.get("content-length", "0"))


def _check_size(headers: Headers) -> None:
    # h11 bounds a head that is incomplete; one that arrives in a single read has no bound there.
    if len(headers.raw) > _MAX_HEADERS or sum(len(k) + len(v) for k, v in headers.raw) > _MAX_HEADER_BYTES:
        raise HeaderTooLarge(f"More than {_MAX_HEADERS} headers, or {_MAX_HEADER_BYTES} bytes of them.")


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _preflight_headers(headers: Headers) -> dict[str, str]:
    return {
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": headers.get("access-control-request-headers", "content-type"),
        "access-control-max-age": "600",
    }


def _too_large(settings: ServerSettings) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {settings.max_body} bytes.")
