"""Who may call a server whose settings say nothing of it: what people run on their own machine, and no web page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from server.errors import SetupError
from server.http.origins import CONTAINER_NAMES, origin_is_allowed
from server.settings.types import ServerSettings, Settings
from tests.support.http_raw import Answer, exchange, request
from tests.support.scripted_service import Running, ScriptedService, running

CHAT = "/v1/chat/completions"
GOOD = b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}'


@contextmanager
def guarded(**settings: object) -> Iterator[Running]:
    service = ScriptedService(Settings(server=ServerSettings.model_validate(settings)))
    with running(service, guarded=True) as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with guarded() as up:
        yield up


@pytest.fixture(scope="module")
def strict() -> Iterator[Running]:
    """Without pages of this machine, and with the extensions of one browser."""
    with guarded(local_origins=False, allowed_origins=["chrome-extension://*", "moz-extension://abc"]) as up:
        yield up


def ask(server: Running, **headers: str) -> Answer:
    answer = exchange(server.port, request("POST", CHAT, GOOD, **headers))
    assert answer is not None
    return answer


LOCAL = [
    "http://localhost", "http://localhost:3000", "https://localhost:5173", "http://127.0.0.1:8888", "http://[::1]:3000",
    "app://obsidian.md", "tauri://localhost", "vscode-webview://0k3p2", "vscode-file://vscode-app",
]  # fmt: skip
FOREIGN = [
    "https://evil.example", "http://localhost.evil.example", "http://127.0.0.1.evil.example:80", "null", "file://",
    "http://tauri.localhost", "https://tauri.localhost", "http://user@localhost", "ftp://localhost", "app:obsidian.md",
    "chrome-extension://ehkjfbmn", "moz-extension://0e6b", "safari-web-extension://9A", "http://192.168.1.7:3000",
    "http://host.docker.internal:3000",
]  # fmt: skip


@pytest.mark.parametrize("origin", LOCAL)
def test_a_page_of_this_machine_may_call(server: Running, origin: str) -> None:
    answer = ask(server, origin=origin)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "x-configi-cached-tokens" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", FOREIGN)
def test_what_the_web_can_send_may_not(server: Running, origin: str) -> None:
    answer = ask(server, origin=origin)
    assert (answer.status, answer.error["type"]) == (403, "permission_error")
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", LOCAL)
def test_pages_of_this_machine_can_be_kept_out(strict: Running, origin: str) -> None:
    answer = ask(strict, host="127.0.0.1:8080", origin=origin)
    assert answer.status == 403
    assert f'add "{origin}" to server.allowed_origins' in answer.error["message"]
    assert "server.local_origins" in answer.error["message"]


def test_a_page_of_our_own_may_call_all_the_same(strict: Running) -> None:
    assert ask(strict, host="localhost:8080", origin="http://localhost:8080").status == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("chrome-extension://ehkjfbmn", 200), ("chrome-extension://other", 200), ("moz-extension://abc", 200),
        ("moz-extension://other", 403), ("safari-web-extension://abc", 403), ("https://chrome-extension", 403),
    ],
)  # fmt: skip
def test_extensions_of_a_browser_are_listed_each_or_all_of_a_kind(strict: Running, origin: str, status: int) -> None:
    assert ask(strict, origin=origin).status == status


@pytest.mark.parametrize("host", [*sorted(CONTAINER_NAMES), "host.docker.internal:8080", "HOST.DOCKER.INTERNAL"])
def test_a_container_may_call_this_machine_by_the_name_that_it_knows(server: Running, host: str) -> None:
    assert ask(server, host=host).status == 200


@pytest.mark.parametrize("host", ["evil.docker.internal", "host.docker.internal.evil.example", "docker.internal"])
def test_no_other_name_comes_with_it(server: Running, host: str) -> None:
    answer = ask(server, host=host)
    assert answer.status == 403
    assert f'add "{host}" to server.allowed_hosts' in answer.error["message"]


@pytest.mark.parametrize("origin", ["http://host.docker.internal", "https://host.docker.internal"])
def test_a_page_of_such_a_name_is_none_of_ours(server: Running, origin: str) -> None:
    """Programs in containers are no browsers: a page of that name has a resolver that lies."""
    assert ask(server, host="host.docker.internal", origin=origin).status == 403


@pytest.mark.parametrize("header", ["origin", "host"])
@pytest.mark.parametrize("value", ["https://" + "x" * 300 + ".example", 'a$b\\"c'])
def test_what_no_setting_can_hold_is_not_repeated(server: Running, header: str, value: str) -> None:
    value = value.removeprefix("https://") if header == "host" else value
    answer = ask(server, **{header: value})
    assert answer.status == 403
    assert value not in answer.error["message"] or header == "host"
    assert f"server.allowed_{header}s" in answer.error["message"]


def test_only_schemes_that_no_web_page_has_may_stand_for_all_their_hosts() -> None:
    assert origin_is_allowed("obsidian://vault", "localhost", ["obsidian://*"])
    ServerSettings(allowed_origins=["safari-web-extension://*"])
    for origin in ("http://*", "https://*", "http://*:80"):
        with pytest.raises((ValueError, SetupError), match="can never match"):
            ServerSettings(allowed_origins=[origin])
