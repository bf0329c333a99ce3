"""What a whole answer owes to the prefix cache stands in its headers, in every dialect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.chat.deltas import CacheDivergence, Finish, TextDelta, Usage
from tests.support.scripted_events import ScriptedEvents
from tests.support.scripted_service import Running, running

SAID: list[Any] = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": SAID},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": SAID, "max_tokens": 9},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedEvents()) as up:
        yield up


def headers(server: Running, path: str, usage: Usage, **fields: Any) -> list[str | None]:
    assert isinstance(server.service, ScriptedEvents)
    server.service.says(TextDelta(0, "Paris."), Finish(0, "stop", 2), usage)
    reply = server.send("POST", path, BODIES[path] | fields)
    assert reply.status == 200, reply.body
    return [
        reply.headers.get(f"x-configi-{name}") for name in ("cached-tokens", "cache-diverged-at", "cache-diverged-in")
    ]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        (None, ["12", None, None]),
        (CacheDivergence(14), ["12", "14", None]),
        (CacheDivergence(14, "system"), ["12", "14", "system"]),
        (CacheDivergence(14, "messages"), ["12", "14", "messages"]),
    ],
)
def test_a_whole_answer_tells_what_was_cached_and_where_it_differed(
    server: Running, path: str, divergence: CacheDivergence | None, expected: list[str | None]
) -> None:
    assert headers(server, path, Usage(30, 2, 12, 0, divergence)) == expected


def test_of_several_prompts_the_sum_is_told_and_no_place(server: Running) -> None:
    usage = Usage(30, 2, 12, 0, CacheDivergence(14, "system"))
    assert headers(server, "/v1/completions", usage, prompt=["a", "b"]) == ["24", None, None]


@pytest.mark.parametrize("path", BODIES)
def test_the_headers_of_a_stream_have_left_before(server: Running, path: str) -> None:
    assert headers(server, path, Usage(30, 2, 12), stream=True) == [None, None, None]
