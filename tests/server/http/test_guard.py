"""Bad inputs 1 to 22, the HTTP level, on the sockets of a real server; each is followed by a good request."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.http.origins import allowed_names, host_is_allowed, host_name, origin_is_allowed
from tests.support.http_raw import exchange, read_answer, request
from tests.support.running import Running, serving_script

CHAT = "/v1/chat/completions"
GOOD = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}).encode()
KEY = "right-key"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    with serving_script(tmp_path_factory.mktemp("guard-locked"), model, server={"api_key": KEY}) as running:
        yield running


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
    # Stored responses are deleted.
    assert "DELETE" in preflight.headers["access-control-allow-methods"]
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
    "path", ["/nope", "/v1/models/..%2f..%2fetc/passwd", "/v1/models//etc/passwd", "/v1", "/v1/v1", "/v1x/v1/models"]
)
def test_an_unknown_path_is_404_and_reads_no_file(server: Running, path: str) -> None:
    answer = exchange(server.port, request("GET", path))
    assert answer is not None
    assert answer.status == 404
    assert "root:" not in answer.error["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models", "//v1//models", "/models", "/v1/models?limit=1000", "/v1/models?", "/v1/models/", "/models//?x=1",
        "/v1/v1/models", "//v1/v1/v1//models/",
    ],
)  # fmt: skip
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
    assert "server.api_key" in answer.error["message"]


@pytest.mark.parametrize("header", [{"authorization": f"Bearer {KEY}"}, {"x_api_key": KEY}])
def test_with_the_key_the_request_is_served(locked: Running, header: dict[str, str]) -> None:
    answer = exchange(locked.port, request("POST", CHAT, GOOD, **header))
    assert answer is not None
    assert answer.status == 200


def test_health_needs_no_key(locked: Running) -> None:
    answer = exchange(locked.port, request("GET", "/health"))
    assert answer is not None
    assert answer.status == 200


@pytest.mark.parametrize(
    "target", ["http://localhost:8080/v1/models", "HTTP://127.0.0.1//v1/models/", "https://[::1]/models"]
)
def test_a_whole_url_is_the_path_in_it(server: Running, target: str) -> None:
    """RFC 9112, 3.2.2: every server takes what is meant for a proxy."""
    answer = exchange(server.port, request("GET", target))
    assert answer is not None
    assert answer.status == 200
    assert b"context_length" in answer.body


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://evil.example/v1/models", "localhost", 403),
        ("http://localhost/v1/models", "evil.example", 403),
        ("http://a@localhost/v1/models", "localhost", 400),
        ("http:///v1/models", "localhost", 400),
        ("http://localhost", "localhost", 404),
        ("ftp://localhost/v1/models", "localhost", 404),
    ],
)
def test_the_host_of_a_whole_url_is_one_that_is_served(server: Running, target: str, host: str, status: int) -> None:
    answer = exchange(server.port, request("GET", target, host=host))
    assert answer is not None
    assert (answer.status, bool(answer.error)) == (status, True)


def test_a_listed_page_of_the_web_may_call_a_private_address(server: Running) -> None:
    asked = {"access_control_request_method": "POST", "access_control_request_private_network": "true"}
    for origin, granted in (("https://app.example", "true"), ("https://evil.example", None)):
        preflight = exchange(server.port, request("OPTIONS", CHAT, origin=origin, **asked))
        assert preflight is not None
        assert preflight.headers.get("access-control-allow-private-network") == granted
    plain = exchange(
        server.port, request("OPTIONS", CHAT, origin="https://app.example", access_control_request_method="POST")
    )
    assert plain is not None and "access-control-allow-private-network" not in plain.headers


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
def test_an_offer_of_http_2_is_declined_by_answering(server: Running, framing: str) -> None:
    """Java's client sends one with its first request, body and all; other servers lost the body or hung."""
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAMAAABkAARAAAAAAAIAAAAA"}
    body, length = (
        (GOOD, str(len(GOOD))) if framing == "content-length" else (b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD), None)
    )
    coding = None if length else "chunked"
    asked = request("POST", CHAT, body, content_length=length, transfer_encoding=coding, **offer)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        for _ in range(2):
            sock.sendall(asked)
            answer = read_answer(sock)
            assert answer is not None
            assert (answer.status, answer.closed) == (200, False)
