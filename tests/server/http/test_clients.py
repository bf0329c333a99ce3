"""Who a client is: the key that was accepted, for fairness, for prefixes, in the log and in the metrics."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from server.chat.conversation import Client
from server.settings.types import Settings
from tests.support.http_raw import exchange, request
from tests.support.running import Running, serving
from tests.support.scripted_service import ScriptedService, running
from tests.support.tiny_model import write_tiny_model

CHAT = "/v1/chat/completions"
KEYS = {"laptop": "first-key", "editor": "sha256:" + hashlib.sha256(b"second-key").hexdigest()}


def clients(settings: dict[str, Any], *headers: dict[str, str]) -> list[tuple[int, Client | None]]:
    """The status of a request with each of `headers`, and who sent it."""
    service = ScriptedService(Settings.model_validate(settings))
    seen: list[tuple[int, Client | None]] = []
    with running(service, guarded=True) as server:
        for given in headers:
            service.requests.clear()
            status = server.send("POST", CHAT, {"messages": [{"role": "user", "content": "hi"}]}, **given).status
            seen.append((status, service.requests[0].client if service.requests else None))
    return seen


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_however_a_key_is_spelled_its_client_is_one_group(name: str) -> None:
    prefixes = ("Bearer ", "bearer ", "BEARER   ", "Bearer\t ") if name == "authorization" else ("", " ", "  ")
    spellings = [{name: f"{prefix}first-key{end}"} for prefix in prefixes for end in ("", "  ") if "\t" not in prefix]
    seen = clients({"server": {"api_keys": KEYS}}, *spellings)
    assert {status for status, _ in seen} == {200}
    assert {client.group for _, client in seen if client} == {"laptop"}


def test_each_key_is_a_client_whether_it_is_given_as_itself_or_as_a_hash() -> None:
    settings = {"server": {"api_key": "plain", "api_keys": KEYS}}
    keys = ("first-key", "second-key", "plain", "third", KEYS["editor"], "")
    seen = clients(settings, *({"authorization": f"Bearer {key}"} for key in keys))
    assert [(status, client and client.group) for status, client in seen] == [
        (200, "laptop"), (200, "editor"), (200, "default"), (401, None), (401, None), (401, None),
    ]  # fmt: skip


def test_without_keys_the_client_is_its_address_whatever_it_sends() -> None:
    seen = clients({}, {}, {"authorization": "Bearer a"}, {"authorization": "Bearer  b", "x-api-key": "c"})
    assert seen == [(200, Client("127.0.0.1", ""))] * 3


@pytest.mark.parametrize(
    ("server", "share", "salt"),
    [
        ({"api_keys": KEYS}, "auto", "laptop"),
        ({"api_keys": {"laptop": "first-key"}}, "auto", ""),
        ({"api_key": "plain", "api_keys": {"laptop": "first-key"}}, "auto", "laptop"),
        ({"api_keys": KEYS}, "all", ""),
        ({"api_keys": {"laptop": "first-key"}}, "key", "laptop"),
    ],
)
def test_prefixes_are_by_key_where_several_are_configured_or_as_the_setting_says(
    server: dict[str, Any], share: str, salt: str
) -> None:
    settings = {"server": server, "cache": {"share": share}}
    assert clients(settings, {"authorization": "Bearer first-key"}) == [(200, Client("laptop", salt))]


QUESTION = {"messages": [{"role": "user", "content": "A question that nobody else can guess."}], "max_tokens": 2}


def ask(server: Running, key: str) -> int:
    """Tokens of the prompt that were not read for this answer."""
    answer = exchange(server.port, request("POST", CHAT, json.dumps(QUESTION).encode(), authorization=f"Bearer {key}"))
    assert answer is not None and answer.status == 200
    cached: int = json.loads(answer.body)["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


@pytest.mark.parametrize("share", ["key", "all"])
def test_one_client_sees_what_another_has_asked_only_where_all_share(tmp_path: Path, share: str) -> None:
    model = write_tiny_model(tmp_path / "model")
    sections = {"cache": {"share": share, "disk_limit": 0}, "server.api_keys": KEYS}
    with serving(tmp_path, model, **sections) as server:
        assert ask(server, "first-key") == 0
        assert (ask(server, "second-key") > 0) is (share == "all")
        assert ask(server, "first-key") > 0
        metrics = exchange(server.port, request("GET", "/metrics", authorization="Bearer first-key"))
        exchange(server.port, request("GET", "/v1/models", authorization="Bearer somebody-else"))
        log = server.log.read_text()
    assert metrics is not None
    told = metrics.body.decode()
    assert 'configi_client_requests_total{client="laptop",status="2xx"} 2.0' in told
    assert 'configi_client_requests_total{client="editor",status="2xx"} 1.0' in told
    lines = [json.loads(line) for line in log.splitlines() if '"request"' in line]
    assert [line.get("client") for line in lines] == ["laptop", "editor", "laptop", "laptop", None]
    assert not any(key in log for key in ("first-key", "second-key", "somebody-else"))
