"""The listening sockets, and the server's life from its first connection to its orderly end. HTTP process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable, Sequence

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.allocator import keep_little
from server.child.process import watch_without_threads
from server.errors import SetupError
from server.http.compat import UvicornServer
from server.http.guard import Guard
from server.http.origins import is_loopback
from server.http.protocol import protocol_class
from server.settings.types import ServerSettings

_log = logging.getLogger("configi.http")

_BACKLOG = 512
# What macOS allows a process at most by default (OPEN_MAX).
_FILES = 10240
# Longer than what proxies and SDK connection pools keep (60 s), so that the client closes first.
_KEEP_ALIVE_S = 75
# How long a thread that computes may keep the event loop from the interpreter: a fifth of what is usual, since the loop
# asks for it again after each system call.
_TURN_S = 0.001
# What streams get, after the grace time, to write their error event.
_LAST_WORDS_S = 2.0


def bind(settings: ServerSettings) -> list[socket.socket]:
    """Take the port before any other work. `localhost` is both loopback addresses, as far as this machine has them:
    clients try `::1` first.

    Raises:
        SetupError: the port is taken, this machine does not have the address, or it is open to others without a key.
    """
    host, port = settings.host, settings.port
    if not is_loopback(host) and not settings.key_digests:
        raise SetupError(f"Listening on {host} opens the server to others: set server.api_key, or listen on 127.0.0.1.")
    if host.lower() != "localhost":
        return [_listening(host, port)]
    first = _listening("127.0.0.1", port)
    if not _has_loopback_6():
        return [first]
    try:
        return [first, _listening("::1", first.getsockname()[1])]
    except SetupError:
        first.close()
        raise


def _has_loopback_6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def _listening(host: str, port: int) -> socket.socket:
    try:
        [family, kind, protocol, _, address], *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        sock = socket.socket(family, kind, protocol)
    except socket.gaierror:
        raise SetupError(f"Cannot listen on {host}: no such address.") from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        # Now, not when the loop runs: until then the port could still be lost to somebody else.
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        reasons = {
            errno.EADDRINUSE: f"port {port} is already in use; choose another with --port",
            errno.EADDRNOTAVAIL: "this machine has no such address",
            errno.EACCES: "ports below 1024 need privileges",
        }
        reason = reasons.get(error.errno or 0, error.strerror)
        raise SetupError(f"Cannot listen on {host}:{port}: {reason}.") from None
    return sock


def run(
    app: Guard,
    sockets: Sequence[socket.socket],
    settings: ServerSettings,
    on_drain: Callable[[], None],
    on_grace_over: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then end in order; returns when all is done.

    The first signal stops accepting and calls `on_drain`; after `shutdown_grace_s` `on_grace_over` must end whatever
    still runs. A second signal exits at once, status 1.

    Raises:
        SetupError: what the application starts or ends with has failed.
    """
    lifespan = _Lifespan(app)
    _allow_many_connections()
    keep_little()
    sys.setswitchinterval(_TURN_S)
    # What is there now stays: the collector, which stops everything, need not look at it again and again. A command
    # that has only started may have turned it off.
    gc.freeze()
    gc.enable()
    config = uvicorn.Config(
        lifespan,
        # A second more than the streams' own write timeout, which ends the request behind the connection first.
        http=protocol_class(settings.header_timeout_s, settings.sse_write_timeout_s + 1, app.dialects),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.shutdown_grace_s + _LAST_WORDS_S + 1),
        backlog=_BACKLOG,
    )
    # uvicorn exits with a status of its own, and says why in the log, which is muted.
    with contextlib.suppress(SystemExit):
        _Server(config, settings.shutdown_grace_s, on_drain, on_grace_over).run(sockets=list(sockets))
    lifespan.check()


def _allow_many_connections() -> None:
    """A shell on macOS gives a process 256 files, which a hundred clients and an engine use up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # Not worth failing for: macOS has a limit beside the hard one.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Lifespan:
    """The application, and what went wrong while it started or ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._doing = "start"
        self._error: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        watch_without_threads()

        async def watched(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._doing = "end in order"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            self._error = error
            raise

    def check(self) -> None:
        if isinstance(self._error, SetupError):
            raise self._error
        if self._error is not None:
            _log.debug("error in the lifespan", exc_info=self._error)
            reason = " ".join(f"{type(self._error).__name__}: {self._error}".split()).rstrip(".: ")
            raise SetupError(f"The server could not {self._doing}: {reason}.") from self._error


class _Server(UvicornServer):
    def __init__(
        self, config: uvicorn.Config, grace_s: float, on_drain: Callable[[], None], on_grace_over: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._grace_s = grace_s
        self._on_drain = on_drain
        self._on_grace_over = on_grace_over

    def on_signal(self) -> None:
        if self.should_exit:
            # The engine and the workers see their stdin close and end themselves.
            os._exit(1)
        self.should_exit = True
        self._on_drain()
        asyncio.get_running_loop().call_later(self._grace_s, self._on_grace_over)
