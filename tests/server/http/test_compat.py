"""What server/http/compat.py relies on in uvicorn, h11 and sse-starlette.

A failure here is not to be patched over: read the reasons there, see which parts can go, then move the bound in
pyproject.toml.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import tomllib
from collections.abc import AsyncGenerator
from importlib.metadata import version
from typing import Any

import anyio
import h11
import pytest
import sse_starlette.sse
import uvicorn
from packaging.requirements import Requirement
from starlette.types import Message
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from server.http import compat
from tests.support.running import ROOT

HEAD = b"GET /a%20path HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.mark.parametrize(("package", "release"), [("uvicorn", "0.54"), ("h11", "0.16"), ("sse-starlette", "3.7")])
def test_the_releases_are_those_that_were_read_and_pyproject_allows_no_later_one(package: str, release: str) -> None:
    assert version(package).startswith(f"{release}."), f"server/http/compat.py was checked against {release}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [bound] = [line for line in map(Requirement, project["dependencies"]) if line.name == package]
    major, minor = map(int, release.split("."))
    assert not bound.specifier.contains(f"{major}.{minor + 1}.0")


# ---- h11


def protocol_error(data: bytes) -> h11.RemoteProtocolError:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    with pytest.raises(h11.RemoteProtocolError) as raised:
        connection.next_event()
    return raised.value


def test_a_protocol_error_quotes_bytes_at_its_end_and_nowhere_else() -> None:
    assert str(protocol_error(b"\x16\x03\x01 what: is this\r\n\r\n")).startswith("illegal request line: bytearray(b'")
    header = protocol_error(b"GET / HTTP/1.1\r\nno colon\r\n\r\n")
    assert compat._without_bytes(str(header)) == "illegal header line"
    assert header.error_status_hint == 400


def test_a_head_that_is_too_large_has_a_status_of_its_own() -> None:
    assert protocol_error(b"GET / HTTP/1.1\r\na: " + b"b" * 100_000).error_status_hint == 431


# ---- uvicorn's connections


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closing = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Connection(compat.UvicornConnection):
    refused: tuple[str, bool] | None = None

    def on_protocol_error(self, reason: str, *, too_large: bool) -> None:
        self.refused = (reason, too_large)


async def answered(_: Any, __: Any, send: Any) -> None:
    """An application that reads no body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def connected(app: Any = answered) -> tuple[Connection, Transport]:
    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_keep_alive=75)
    config.load()
    connection, transport = Connection(config, ServerState(), {}), Transport()
    connection.connection_made(transport)
    return connection, transport


async def done(connection: Connection) -> None:
    """When the application has answered what came so far."""
    await asyncio.gather(*connection.tasks)


def test_what_uvicorn_calls_by_itself_has_these_names() -> None:
    assert list(inspect.signature(H11Protocol.send_400_response).parameters) == ["self", "msg"]
    for name in ("connection_made", "data_received", "connection_lost", "pause_writing", "resume_writing"):
        assert name in vars(H11Protocol)
    assert list(inspect.signature(H11Protocol.timeout_keep_alive_handler).parameters) == ["self"]
    assert "self.response_complete" in inspect.getsource(RequestResponseCycle.__init__)
    assert issubclass(uvicorn.Config(answered, http=Connection, log_config=None).http, Connection)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "refused"),
    [
        (b"no http\r\n\r\n", ("illegal request line", False)),
        (b"GET / HTTP/1.1\r\na: " + b"b" * 100_000, ("Receive buffer too long", True)),
    ],
)
def test_a_protocol_error_is_handed_on_while_it_is_handled(data: bytes, refused: tuple[str, bool]) -> None:
    async def run() -> None:
        connection, transport = connected()
        connection.data_received(data)
        assert (connection.refused, transport.written) == (refused, b"")
        assert sys.exception() is None

    asyncio.run(run())


def test_a_connection_tells_what_its_client_owes_and_which_request_is_under_way() -> None:
    async def run() -> None:
        connection, transport = connected()
        assert (connection.owes_bytes(), connection.path_under_way()) == (False, None)
        connection.data_received(HEAD[:10])
        assert (connection.owes_bytes(), connection.path_under_way()) == (True, None)
        connection.data_received(HEAD[10:])
        assert (connection.owes_bytes(), connection.path_under_way()) == (False, "/a path")
        await done(connection)
        assert transport.written.startswith(b"HTTP/1.1 200 OK\r\n")
        assert (connection.owes_bytes(), connection.path_under_way()) == (False, None)
        connection.connection_lost(None)

    asyncio.run(run())


def test_the_rest_of_an_answered_body_is_owed_and_takes_uvicorns_idle_timer_with_it() -> None:
    async def run() -> None:
        connection, _ = connected()
        connection.data_received(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n")
        await done(connection)
        assert connection.owes_bytes()
        connection.data_received(b"{}")
        # The reason for `keep_idle_timer`.
        assert connection.timeout_keep_alive_task is None
        assert not connection.owes_bytes()
        connection.keep_idle_timer()
        timer = connection.timeout_keep_alive_task
        connection.keep_idle_timer()
        assert timer is not None
        assert connection.timeout_keep_alive_task is timer  # type: ignore[unreachable]
        connection.connection_lost(None)
        assert timer.cancelled()

    asyncio.run(run())


def test_a_connection_is_closed_with_an_answer_unless_one_is_under_way() -> None:
    async def run() -> None:
        connection, transport = connected()
        connection.close_with(408, {"content-length": "2", "connection": "close"}, b"{}")
        assert transport.closing
        head, _, body = transport.written.partition(b"\r\n\r\n")
        assert head.splitlines() == [b"HTTP/1.1 408 ", b"content-length: 2", b"connection: close"]
        assert body == b"{}"
        begun = asyncio.Event()

        async def begins(_: Any, __: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
            begun.set()
            await asyncio.Event().wait()

        connection, transport = connected(begins)
        connection.data_received(HEAD)
        await begun.wait()
        before = transport.written
        connection.close_with(408, {}, b"")
        assert (transport.closing, transport.written) == (True, before)
        connection.connection_lost(None)
        for task in connection.tasks:
            task.cancel()

    asyncio.run(run())


# ---- uvicorn's signals


def test_uvicorn_serves_inside_capture_signals_and_ends_by_should_exit() -> None:
    assert list(inspect.signature(uvicorn.Server.capture_signals).parameters) == ["self"]
    assert "with self.capture_signals():" in inspect.getsource(uvicorn.Server.serve)
    # The reason for our own.
    assert "signal.raise_signal(captured_signal)" in inspect.getsource(uvicorn.Server.capture_signals)
    assert uvicorn.Server(uvicorn.Config(answered, log_config=None)).should_exit is False


# ---- sse-starlette


def test_the_listener_for_the_signal_is_the_one_that_is_replaced() -> None:
    listener = "_listen_for_exit_signal_with_grace"
    assert inspect.iscoroutinefunction(getattr(sse_starlette.EventSourceResponse, listener))
    assert f"self.{listener}" in inspect.getsource(sse_starlette.EventSourceResponse.__call__)
    # The reason: what the documented switch leaves behind.
    assert "await anyio.sleep(0.5)" in inspect.getsource(sse_starlette.sse._shutdown_watcher)


def test_every_event_and_ping_is_sent_by_the_method_that_is_replaced() -> None:
    response = sse_starlette.EventSourceResponse
    assert list(inspect.signature(response._send_with_timeout).parameters) == ["self", "send", "message"]
    for sender in (response._stream_response, response._ping):
        assert "await self._send_with_timeout(" in inspect.getsource(sender)
    # The reason: a scope for each message.
    assert "with anyio.move_on_after(self.send_timeout)" in inspect.getsource(response._send_with_timeout)


def test_a_stream_goes_on_after_the_signal_and_knows_when_its_client_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse_starlette.sse.AppStatus, "should_exit", True)
    sent: list[bytes] = []

    async def run() -> bool:
        leave = asyncio.Event()

        async def frames() -> AsyncGenerator[bytes, None]:
            yield b"data: 1\n\n"
            # Each task of the response has had its turn.
            await anyio.wait_all_tasks_blocked()
            yield b"data: 2\n\n"
            leave.set()
            await asyncio.Event().wait()

        async def receive() -> Message:
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message.get("body", b""))

        response = compat.UncutEventStream(frames())
        response.client_close_handler_callable = response.note_client_left
        assert not response.client_left
        await response({"type": "http", "method": "GET"}, receive, send)
        return response.client_left

    assert asyncio.run(run())
    assert sent == [b"", b"data: 1\n\n", b"data: 2\n\n"]


def test_a_reader_that_stalls_is_this_error() -> None:
    async def run() -> None:
        async def frames() -> AsyncGenerator[bytes, None]:
            yield b"data: 1\n\n"

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        await compat.UncutEventStream(frames(), send_timeout=0.01)({"type": "http", "method": "GET"}, receive, send)

    with pytest.raises(compat.StalledReader):
        asyncio.run(run())
