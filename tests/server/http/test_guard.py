"""Bad inputs 1 to 22, the HTTP level, on the sockets of a real server; each is followed by a good request."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.http.origins import allowed_names, host_is_allowed, host_name, origin_is_allowed
from tests.support.http_raw import exchange, read_answer, request
from tests.support.running import Running, serving_script
from tests.support.streams import stream
from tests.support.tiny_model import write_tiny_model

CHAT = "/v1/chat/completions"
GOOD = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}).encode()
KEY = "right-key"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("guard") / "model")


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    settings = {
        "header_timeout_s": 1, "body_timeout_s": 1, "max_body": 20_000,
        "allowed_hosts": ["my-mac.example"],
        "allowed_origins": ["https://app.example", "http://localhost:*", "http://[::1]:*"],
    }  # fmt: skip
    with serving_script(tmp_path_factory.mktemp("guard-server"), model, server=settings) as running:
        yield running


@pytest.fixture
def server(one_server: Running) -> Iterator[Running]:
    """After each case the next good request must still answer."""
    yield one_server
    one_server.assert_still_serves()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    with serving_script(tmp_path_factory.mktemp("guard-locked"), model, server={"api_key": KEY}) as running:
        yield running


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


@pytest.mark.parametrize("host", [None, "", "a b", "localhost:notaport", "user@localhost"])
def test_a_missing_or_malformed_host_is_400(server: Running, host: str | None) -> None:
    answer = exchange(server.port, request("GET", "/v1/models", host=host))
    assert answer is not None
    assert answer.status == 400
    assert answer.error["message"]


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.com", "localhost.evil.com:8080", "8.8.8.8"])
def test_a_foreign_host_is_403_before_routing(server: Running, method: str, host: str) -> None:
    answer = exchange(server.port, request(method, "/no/such/route", host=host))
    assert answer is not None
    assert (answer.status, answer.error["type"]) == (403, "permission_error")


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "LOCALHOST", "127.0.0.1", "127.0.0.1:1", "[::1]:8080", "my-mac.example"]
)
def test_our_own_names_are_served(server: Running, host: str) -> None:
    answer = exchange(server.port, request("GET", "/v1/models", host=host))
    assert answer is not None
    assert answer.status == 200


def test_an_address_in_the_host_header_is_served_when_every_interface_is_open() -> None:
    assert host_is_allowed("192.168.1.7", frozenset(), bound_to_all=True)
    assert not host_is_allowed("192.168.1.7", frozenset(), bound_to_all=False)
    assert not host_is_allowed("rebound.example", frozenset(), bound_to_all=True)
    assert host_name("[::1]:8080") == "::1"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.com", "https://app.example.evil"]
)
@pytest.mark.parametrize("method", ["POST", "OPTIONS"])
def test_a_foreign_origin_is_403_without_cors_headers(server: Running, origin: str, method: str) -> None:
    preflight = {"access_control_request_method": "POST"} if method == "OPTIONS" else {}
    answer = exchange(server.port, request(method, CHAT, GOOD, origin=origin, **preflight))
    assert answer is not None
    assert (answer.status, answer.error["type"]) == (403, "permission_error")
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_listed_origin_gets_its_preflight_and_its_answer(server: Running) -> None:
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "authorization,x-stainless-os"}
    preflight = exchange(server.port, request("OPTIONS", CHAT, origin="https://app.example", **asked))
    assert preflight is not None
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert preflight.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    answer = exchange(server.port, request("POST", CHAT, GOOD, origin="https://app.example"))
    assert answer is not None
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"


@pytest.mark.parametrize(
    ("origin", "served"),
    [
        ("http://localhost:3000", True), ("http://localhost", True), ("http://[::1]:5173", True),
        ("https://localhost:3000", False), ("http://localhost.evil.example:3000", False),
        ("http://evil.example:3000", False), ("null", False),
    ],
)  # fmt: skip
def test_an_origin_with_a_star_for_its_port_is_that_host_on_any_port(
    server: Running, origin: str, served: bool
) -> None:
    answer = exchange(server.port, request("POST", CHAT, GOOD, origin=origin))
    assert answer is not None
    assert answer.status == (200 if served else 403)
    assert answer.headers.get("access-control-allow-origin") == (origin if served else None)


@pytest.mark.parametrize("header", [{"origin": "https://evil.example"}, {"host": "evil.example"}])
def test_what_is_refused_names_the_setting_that_admits_it(server: Running, header: dict[str, str]) -> None:
    answer = exchange(server.port, request("GET", "/v1/models", **header))
    assert answer is not None
    [name] = header
    assert f"add it to server.allowed_{name}s" in answer.error["message"]


def test_every_origin_is_served_where_a_star_is_listed() -> None:
    assert origin_is_allowed("https://anything.example", "localhost:8080", ["*"])
    assert origin_is_allowed("null", "localhost:8080", ["*"])
    assert not origin_is_allowed("https://anything.example", "localhost:8080", [])


def test_the_name_of_this_machine_is_served_only_where_others_can_connect(server: Running) -> None:
    own = socket.gethostname()
    for name in (own, f"{own.lower().removesuffix('.local')}.local"):
        answer = exchange(server.port, request("GET", "/v1/models", host=name))
        assert answer is not None
        assert answer.status == 403
        assert host_is_allowed(name.lower(), allowed_names("0.0.0.0", []), bound_to_all=True)
        assert host_is_allowed(name.lower(), allowed_names("192.168.1.7", []), bound_to_all=False)
        assert host_is_allowed(name.lower(), allowed_names("127.0.0.1", [name]), bound_to_all=False)


def test_a_page_of_our_own_may_call(server: Running) -> None:
    answer = exchange(server.port, request("POST", CHAT, GOOD, host="localhost:8080", origin="http://localhost:8080"))
    assert answer is not None
    assert answer.status == 200


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""])
def test_any_content_type_but_json_is_415(server: Running, kind: str | None) -> None:
    answer = exchange(server.port, request("POST", CHAT, GOOD, content_type=kind))
    assert answer is not None
    assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")


def test_json_with_a_charset_is_json(server: Running) -> None:
    answer = exchange(server.port, request("POST", CHAT, GOOD, content_type="Application/JSON; charset=utf-8"))
    assert answer is not None
    assert answer.status == 200


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_body_is_415(server: Running, coding: str) -> None:
    answer = exchange(server.port, request("POST", CHAT, GOOD, content_encoding=coding))
    assert answer is not None
    assert answer.status == 415


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


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_wrong_method_is_405_with_allow(server: Running, method: str) -> None:
    answer = exchange(server.port, request(method, CHAT))
    assert answer is not None
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.error["code"] == "method_not_allowed"


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/v1/models", 200), ("/ready", 200), (CHAT, 405)])
def test_head_is_get_without_its_body(server: Running, path: str, status: int) -> None:
    server.assert_still_serves()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(request("HEAD", path))
        head, _, body = b"".join(iter(lambda: sock.recv(65536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-length: " in head
    assert body == b""


@pytest.mark.parametrize(
    "path", ["/nope", "/v1/models/..%2f..%2fetc/passwd", "/v1/models//etc/passwd", "/v1", "/v1/chat/completions/"]
)
def test_an_unknown_path_is_404_and_reads_no_file(server: Running, path: str) -> None:
    answer = exchange(server.port, request("GET", path))
    assert answer is not None
    assert answer.status == 404
    assert "root:" not in answer.error["message"]


@pytest.mark.parametrize("path", ["/v1/models", "//v1//models", "/models", "/v1/models?limit=1000", "/v1/models?"])
def test_tolerated_spellings_of_a_path(server: Running, path: str) -> None:
    answer = exchange(server.port, request("GET", path))
    assert answer is not None
    assert answer.status == 200


def test_control_characters_in_a_path_are_logged_escaped(server: Running) -> None:
    exchange(server.port, request("GET", "/%1b%5b31mred%0d%0ainjected"))
    logged = server.log.read_text()
    assert "injected" in logged
    assert "\x1b" not in logged
    assert "\ninjected" not in logged


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2_3", True), ("a b", False), ("x" * 65, False)])
def test_a_request_id_is_the_clients_when_it_is_harmless(server: Running, given: str, kept: bool) -> None:
    answer = exchange(server.port, request("GET", "/v1/models", x_request_id=given))
    assert answer is not None
    assert (answer.headers["x-request-id"] == given) is kept


@pytest.mark.parametrize("path", ["/v1/models", CHAT, "/ready", "/metrics", "/tokenize", "/nope"])
@pytest.mark.parametrize("key", [None, "wrong", "", "r\xefght-key", "x" * 30_000, "right-key2"])
def test_without_the_key_every_route_is_401(locked: Running, path: str, key: str | None) -> None:
    method = "POST" if path in (CHAT, "/tokenize") else "GET"
    authorization = None if key is None else f"Bearer {key}"
    answer = exchange(
        locked.port, request(method, path, GOOD if method == "POST" else b"", authorization=authorization)
    )
    assert answer is not None
    assert (answer.status, answer.error["type"]) == (401, "authentication_error")


@pytest.mark.parametrize("header", [{"authorization": f"Bearer {KEY}"}, {"x_api_key": KEY}])
def test_with_the_key_the_request_is_served(locked: Running, header: dict[str, str]) -> None:
    answer = exchange(locked.port, request("POST", CHAT, GOOD, **header))
    assert answer is not None
    assert answer.status == 200


def test_health_needs_no_key(locked: Running) -> None:
    answer = exchange(locked.port, request("GET", "/health"))
    assert answer is not None
    assert answer.status == 200


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
