"""What every request passes first, as pure ASGI: id, Host and Origin, key, content type, body size and read time.

HTTP process. A request that fails here costs nothing behind it. Every answer, ours or the app's, leaves with an
`x-request-id`; every error is worded by the dialect of its path.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
from server.http.dialect import Dialect, Dialects
from server.http.origins import allowed_names, host_is_allowed, host_name, origin_is_allowed
from server.settings.types import ServerSettings

log = logging.getLogger("configi.guard")
access = logging.getLogger("configi.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_HEADERS = 128
_MAX_HEADER_BYTES = 64 * 1024


class Guard:
    def __init__(self, app: ASGIApp, settings: ServerSettings, dialects: Dialects) -> None:
        self._app = app
        self._settings = settings
        self.dialects = dialects
        self._names = allowed_names(settings.host, settings.allowed_hosts)
        self._bound_to_all = settings.host in ("0.0.0.0", "::", "")
        self._key = settings.api_key.get_secret_value().encode() if settings.api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # Base URLs that end in a slash are common: //v1//models.
        scope["path"] = re.sub("/{2,}", "/", scope["path"])
        exchange = Exchange(_request_id(headers), self.dialects.of(scope["path"]), send)
        scope["state"]["request_id"] = exchange.request_id
        try:
            _check_size(headers)
            self._check_host(headers)
            self._check_origin(headers, exchange)
            if _is_preflight(scope, headers):
                await exchange.answer(204, b"", _preflight_headers(headers))
                return
            self._check_key(scope["path"], headers)
            self._check_body(scope["method"], headers)
            # HEAD is GET whose body the protocol leaves out.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await self._app({**scope, "method": method}, Body(receive, self._settings).receive, exchange.send)
        except ConfigiError as error:
            await exchange.fail(error)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException:
            # A panic of native code is no Exception.
            log.exception("unhandled error", extra={"request_id": exchange.request_id})
            await exchange.fail(ConfigiError())
        finally:
            exchange.log_access(scope)

    def _check_host(self, headers: Headers) -> None:
        values = headers.getlist("host")
        name = host_name(values[0]) if len(values) == 1 else None
        if name is None:
            raise InvalidRequest("The request needs one valid Host header.")
        if not host_is_allowed(name, self._names, bound_to_all=self._bound_to_all):
            raise Forbidden("This host name is not served; add it to server.allowed_hosts.")

    def _check_origin(self, headers: Headers, exchange: Exchange) -> None:
        origin = headers.get("origin")
        if origin is None:
            return
        if not origin_is_allowed(origin, headers["host"], self._settings.allowed_origins):
            raise Forbidden("Web pages of this origin may not call the server; see server.allowed_origins.")
        exchange.extra = [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", b"x-request-id, x-configi-ignored, retry-after"),
            (b"vary", b"origin"),
        ]

    def _check_key(self, path: str, headers: Headers) -> None:
        if self._key is None or path == "/health":
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Header values are latin-1; bytes compare in constant time whatever they hold.
        if not hmac.compare_digest(given.strip().encode("latin-1"), self._key):
            raise AuthenticationFailed("The API key is missing or wrong; send it as Authorization: Bearer KEY.")

    def _check_body(self, method: str, headers: Headers) -> None:
        if "transfer-encoding" in headers and "content-length" in headers:
            raise InvalidRequest("Transfer-Encoding and Content-Length exclude each other.")
        if method != "POST":
            return
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise UnsupportedMediaType("Compressed request bodies are not accepted.")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise UnsupportedMediaType("The Content-Type must be application/json.")
        if int(headers.get("content-length", "0")) > self._settings.max_body_bytes:
            raise _too_large(self._settings)


class Body:
    """`receive` with a bound on size and time until the body is there; afterwards the plain one."""

    def __init__(self, receive: Receive, settings: ServerSettings) -> None:
        self._receive = receive
        self._settings = settings
        self._deadline = asyncio.get_running_loop().time() + settings.body_timeout_s
        self._bytes = 0
        self._complete = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            seconds = self._settings.body_timeout_s
            raise RequestTooSlow(f"The request body did not arrive within {seconds:g} s.") from None
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._settings.max_body_bytes:
            raise _too_large(self._settings)
        self._complete = not message.get("more_body", False)
        return message


class Exchange:
    """One answer on its way out: it starts once, carries its id, and is logged with its status."""

    def __init__(self, request_id: str, dialect: Dialect, send: Send) -> None:
        self.request_id = request_id
        self._dialect = dialect
        self.extra: list[tuple[bytes, bytes]] = []
        self._send = send
        self._status = 0
        self._start = time.monotonic()

    async def send(self, message: Message) -> None:
        """The app's `send`; beyond the first message it only passes on."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode()),
                *self.extra,
            ]
            if self._status in (408, 413):
                # The rest of the body is not read, so nothing more can be read from this connection.
                message["headers"].append((b"connection", b"close"))
        await self._send(message)

    async def fail(self, error: ConfigiError) -> None:
        """Answer with `error`, unless the app's answer is under way."""
        if not self._status:
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
            "status": self._status,
            "ms": round((time.monotonic() - self._start) * 1000),
        }
        access.info("request", extra=fields)


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def _check_size(headers: Headers) -> None:
    # h11 bounds a head that is incomplete; one that arrives in a single read has no bound there.
    if len(headers.raw) > _MAX_HEADERS or sum(len(k) + len(v) for k, v in headers.raw) > _MAX_HEADER_BYTES:
        raise HeaderTooLarge(f"More than {_MAX_HEADERS} headers, or {_MAX_HEADER_BYTES} bytes of them.")


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _preflight_headers(headers: Headers) -> dict[str, str]:
    return {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": headers.get("access-control-request-headers", "content-type"),
        "access-control-max-age": "600",
    }


def _too_large(settings: ServerSettings) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {settings.max_body_bytes} bytes.")
