"""Request bodies on their way in: bounded for all clients together, and given back."""

from __future__ import annotations

import contextlib
import json
import select
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support.http_raw import exchange, read_answer, request
from tests.support.running import Running, serving_script
from tests.support.streams import stream, until
from tests.support.tiny_model import write_tiny_model

CHAT = "/v1/chat/completions"
# Two of the largest bodies fit, and nothing that costs anything beside them.
LARGEST = 4_000_000
BUDGET = 8_000_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("budget") / "model", context=1_000_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    settings = {"max_body": LARGEST, "body_budget": BUDGET, "body_timeout_s": 600, "header_timeout_s": 600}
    with serving_script(tmp_path_factory.mktemp("budget-server"), model, server=settings) as running:
        yield running


def upload(server: Running, size: int) -> socket.socket:
    """A connection with all but the last byte of a body sent."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    sock.sendall(request("POST", CHAT, content_length=str(size)))
    # Refused midway, it is cut; what was answered says why.
    with contextlib.suppress(ConnectionError):
        sock.sendall(b" " * (size - 1))
    return sock


def answered(connections: Sequence[socket.socket]) -> list[socket.socket]:
    return select.select(connections, (), (), 0)[0]


def two_fit(server: Running) -> bool:
    with upload(server, LARGEST) as first, upload(server, LARGEST) as second:
        for connection in (first, second):
            with contextlib.suppress(ConnectionError):
                connection.sendall(b" ")
        answers = [read_answer(connection) for connection in (first, second)]
    # It is read, and found empty.
    return [answer.status for answer in answers if answer is not None] == [400, 400]


def test_beyond_the_budget_is_503_and_what_is_given_back_is_there_for_others(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(upload(server, LARGEST)) for _ in range(4)]
        until(lambda: len(answered(connections)) >= 2)
        for connection in answered(connections):
            refused = read_answer(connection)
            assert refused is not None
            assert (refused.status, refused.error["type"], refused.closed) == (503, "overloaded_error", True)
            assert int(refused.headers["retry-after"]) > 0
        # An ordinary request passes while others upload as much as is allowed.
        server.assert_still_serves()
    # Once the server has seen that they left.
    until(lambda: two_fit(server))


def test_what_has_been_parsed_costs_nothing_while_its_answer_runs(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(stream(server, padding="x" * (LARGEST - 1000))).text()


def test_a_hundred_bodies_in_flight_do_not_fill_the_memory(server: Running) -> None:
    server.assert_still_serves()
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(100) as pool:
        for connection in pool.map(lambda _: upload(server, LARGEST), range(100)):
            stack.enter_context(connection)
        server.assert_still_serves()
        # All of them would be 400 MB.
        assert process.memory_info().rss - before < 120_000_000


@pytest.mark.parametrize(
    "head",
    [
        {"transfer_encoding": "chunked", "content_length": "2"},
        {"transfer_encoding": "chunked", "content_length": None, "content_type": "text/plain"},
        {"content_length": str(LARGEST), "content_type": "text/plain"},
        {"content_length": "2", "content_type": "text/plain", "expect": "100-continue"},
    ],
)
def test_after_an_error_before_a_body_that_is_long_or_unclear_the_connection_closes(
    server: Running, head: dict[str, str | None]
) -> None:
    answer = exchange(server.port, request("POST", CHAT, connection=None, **head))
    assert answer is not None
    assert (answer.status // 100, answer.headers.get("connection"), answer.closed) == (4, "close", True)


def test_a_body_that_no_route_reads_closes_the_connection_when_it_is_long(server: Running) -> None:
    answer = exchange(server.port, request("GET", "/v1/models", connection=None, content_length=str(LARGEST)))
    assert answer is not None
    assert (answer.status, answer.closed) == (200, True)
    assert json.loads(answer.body)["data"]
