"""What is not HTTP, or takes its time: garbage, endless heads, bodies that are too large or never come. Raw sockets."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import ssl
from pathlib import Path

import pytest

from tests.support.http_raw import exchange, read_answer, request
from tests.support.running import Running, serving_script
from tests.support.streams import stream

CHAT = "/v1/chat/completions"
GOOD = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}).encode()


@pytest.mark.parametrize(
    "data", [b"garbage\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9 + b"\r\n\r\n"]
)
def test_garbage_and_a_tls_hello_are_400_and_closed(server: Running, data: bytes) -> None:
    answer = exchange(server.port, data)
    assert answer is not None
    assert (answer.status, answer.closed) == (400, True)
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["message"] == "illegal request line."


def test_a_tls_client_gives_up_quickly(server: Running) -> None:
    context = ssl.create_default_context()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock, pytest.raises(OSError):
        context.wrap_socket(sock, server_hostname="localhost")


def test_a_declared_body_over_the_limit_is_413_before_it_is_sent(server: Running) -> None:
    answer = exchange(server.port, request("POST", CHAT, content_length="20001"))
    assert answer is not None
    assert (answer.status, answer.error["code"], answer.closed) == (413, "body_too_large", True)


def test_a_chunked_body_is_cut_where_it_crosses_the_limit(server: Running) -> None:
    head = request("POST", CHAT, content_length=None, transfer_encoding="chunked")
    answer = exchange(server.port, head + b"2000\r\n" + b"x" * 0x2000 + b"\r\n" + b"4000\r\n" + b"x" * 0x3000)
    assert answer is not None
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")


def test_a_body_that_never_comes_is_408(server: Running) -> None:
    answer = exchange(server.port, request("POST", CHAT, b"{", content_length="1000"))
    assert answer is not None
    assert (answer.status, answer.error["code"], answer.closed) == (408, "request_timeout", True)


def test_a_head_that_dribbles_is_closed_in_time(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.2) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        for i in range(30):
            try:
                sock.sendall(b"x-%d: y\r\n" % i)
                if sock.recv(1):
                    break
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                break
        else:
            pytest.fail("the connection was kept open")


def test_a_second_head_that_never_ends_is_closed_too(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(request("GET", "/health", connection=None))
        first = read_answer(sock)
        assert first is not None
        assert first.status == 200
        sock.sendall(b"GET /health HT")
        second = read_answer(sock)
        assert second is not None
        assert (second.status, second.closed) == (408, True)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_rest_of_a_body_that_nobody_reads_must_come_in_time(server: Running, method: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        unread = request(method, "/v1/models", connection=None, content_length="1000", content_type="text/plain")
        sock.sendall(unread)
        assert read_answer(sock) is not None
        sock.sendall(b"x")
        assert sock.recv(1) == b""


def test_a_connection_survives_an_error_that_was_answered_before_its_body_came(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(request("POST", CHAT, connection=None, content_length=str(len(GOOD)), content_type="text/plain"))
        refused = read_answer(sock)
        assert refused is not None
        assert refused.status == 415
        sock.sendall(GOOD)
        # Longer than an unfinished head or body may take: nothing comes, and nothing is closed.
        sock.settimeout(1.2)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(10)
        sock.sendall(request("POST", CHAT, GOOD))
        answer = read_answer(sock)
        assert answer is not None
        assert answer.status == 200


@pytest.mark.parametrize("headers", [b"x: " + b"y" * 2**20, b"".join(b"x%d: y\r\n" % i for i in range(10_000))])
def test_huge_headers_are_refused(server: Running, headers: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        try:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return
        answer = read_answer(sock)
    assert answer is None or answer.status in (400, 431)


@pytest.mark.parametrize(
    "data",
    [
        request("POST", CHAT, GOOD, transfer_encoding="chunked"),
        request("POST", CHAT, content_length=None, transfer_encoding="chunked") + b"zz\r\n{}\r\n0\r\n\r\n",
        request("POST", CHAT, GOOD, content_length="-5"),
        request("POST", CHAT, GOOD, content_length="abc"),
    ],
)
def test_contradicting_or_broken_lengths_are_400_and_closed(server: Running, data: bytes) -> None:
    answer = exchange(server.port, data)
    assert answer is not None
    assert (answer.status, answer.closed) == (400, True)
    assert answer.error["message"]


def test_a_slow_upload_does_not_disturb_a_stream(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(request("POST", CHAT, b"{", content_length="1000"))
        with stream(server, max_tokens=50) as s:
            assert list(s.events())[-1] == "[DONE]"


def test_a_hundred_idle_connections_under_a_shells_limit_keep_nobody_out(tmp_path: Path, model: Path) -> None:
    shell = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, shell[1]))
    try:
        server = serving_script(tmp_path, model, server={"header_timeout_s": 600})
        with contextlib.ExitStack() as stack:
            running = stack.enter_context(server)
            resource.setrlimit(resource.RLIMIT_NOFILE, shell)
            for _ in range(100):
                stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=10))
            assert exchange(running.port, request("GET", "/health")) is not None
            running.assert_still_serves()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, shell)
