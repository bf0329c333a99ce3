"""What every request passes first, as pure ASGI: id, Host and Origin, key, content type, body size, budget and time.

HTTP process. A request that fails here costs nothing behind it. Every answer, ours or the app's, leaves with an
`x-request-id`; every error is worded by the dialect of its path. Behind the guard, `state["client"]` of the scope is
who asks: the name of the accepted key, or the peer's address where there are no keys.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.allocator import give_back
from server.errors import (
    AuthenticationFailed,
    ConfigiError,
    Forbidden,
    HeaderTooLarge,
    InvalidRequest,
    UnsupportedMediaType,
)
from server.http.budget import BodyBudget
from server.http.clients import Clients
from server.http.dialect import Dialects
from server.http.exchange import Body, Exchange, owed_bytes, too_large
from server.http.origins import allowed_names, host_is_allowed, host_name, is_local, origin_is_allowed
from server.http.parser import BodyParser
from server.http.paths import tidied, without_authority
from server.settings.names import can_be_listed, is_host
from server.settings.types import ServerSettings

log = logging.getLogger("configi.guard")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_HEADERS = 128
_MAX_HEADER_BYTES = 64 * 1024
# Bodies that nobody reads and that go by at once: a hundred refused ones must not take the loop from who is served.
_DRAINS = 4
# Of an answer, what a page may read beside its body.
_EXPOSED = (
    b"x-request-id, request-id, retry-after, x-configi-ignored, x-configi-cached-tokens, x-configi-cache-diverged-at, "
    b"x-configi-cache-diverged-in"
)
_SHOWN_CHARS = 200
_NO_JSON = "The Content-Type must be application/json; with curl: -H 'Content-Type: application/json'."
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
        authority, path = without_authority(scope["path"])
        scope["path"] = tidied(path)
        unreadable = _unreadable(scope["method"], headers)
        share = self._budget.share()
        body = Body(receive, self._settings, share, self._drains, owed_bytes(headers), unreadable)
        exchange = Exchange(_request_id(headers), self.dialects.of(scope["path"]), send, body)
        scope["state"] |= {"request_id": exchange.request_id, "parser": self._parser}
        try:
            _check_size(headers)
            self._check_host(headers.getlist("host"), authority)
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

    def _check_host(self, values: list[str], authority: str | None) -> None:
        """`authority`: of the request's URL, where that is a whole one."""
        names = [host_name(value) for value in (*values, *([] if authority is None else [authority]))]
        if len(values) != 1 or None in names:
            raise InvalidRequest("The request needs one valid Host header.")
        for name in filter(None, names):
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
        if method == "POST" and int(headers.get("content-length", "0")) > self._settings.max_body:
            raise too_large(self._settings)


def _unreadable(method: str, headers: Headers) -> UnsupportedMediaType | None:
    if method != "POST":
        return None
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        return UnsupportedMediaType("Compressed request bodies are not accepted.")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return UnsupportedMediaType(
            "The Content-Type must be application/json; with curl: -H 'Content-Type: application/json'."
        )
    return None


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


def _check_size(headers: Headers) -> None:
    # h11 bounds a head that is incomplete; one that arrives in a single read has no bound there.
    if len(headers.raw) > _MAX_HEADERS or sum(len(k) + len(v) for k, v in headers.raw) > _MAX_HEADER_BYTES:
        raise HeaderTooLarge(f"More than {_MAX_HEADERS} headers, or {_MAX_HEADER_BYTES} bytes of them.")


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _preflight_headers(headers: Headers) -> dict[str, str]:
    # Browsers ask this for a page of the web that calls a machine of the user's; such a page was listed.
    private = headers.get("access-control-request-private-network") == "true"
    return {
        **({"access-control-allow-private-network": "true"} if private else {}),
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": headers.get("access-control-request-headers", "content-type"),
        "access-control-max-age": "600",
    }
