"""Where a prompt leaves the earlier ones, as its headers tell it: over HTTP, with the real engine."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.support.running import Running, serving
from tests.support.tiny_model import write_tiny_model

WORDS = "Once upon a time there was a little house in the middle of the forest. " * 6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("divergence")
    with serving(folder, write_tiny_model(folder / "model")) as running:
        yield running


def answered(server: Running, path: str, **fields: Any) -> tuple[dict[str, str], Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        connection.request("POST", path, json.dumps(fields), {"content-type": "application/json"})
        response = connection.getresponse()
        answer = json.load(response)
        assert response.status == 200, answer
        names = (name.lower() for name in response.headers)
        return {name.removeprefix("x-configi-"): response.headers[name] for name in names}, answer


def chat(server: Running, system: str, *texts: str, n: int = 1) -> tuple[dict[str, str], dict[str, Any]]:
    """A conversation in a prefix cache of its own, by `system`'s first word."""
    said = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    headers, answer = answered(
        server,
        "/v1/chat/completions",
        messages=[{"role": "system", "content": system}, *said],
        max_tokens=2,
        n=n,
        cache_salt=system.split()[0],
    )
    return headers, answer["usage"]


def test_a_next_turn_differs_behind_what_was_there_and_a_changed_system_prompt_within_itself(server: Running) -> None:
    headers, usage = chat(server, f"first {WORDS}", "Hello")
    assert headers["cached-tokens"] == "0"
    assert "cache-diverged-at" not in headers
    before = usage["prompt_tokens"]

    headers, usage = chat(server, f"first {WORDS}", "Hello", "Hi.", "Go on.")
    cached, at = int(headers["cached-tokens"]), int(headers["cache-diverged-at"])
    assert cached == usage["prompt_tokens_details"]["cached_tokens"]
    assert before - 20 <= cached <= at < usage["prompt_tokens"]
    assert headers["cache-diverged-in"] == "messages"

    headers, usage = chat(server, f"first {WORDS[:-20]} at noon.", "Hello", "Hi.", "Go on.")
    assert headers["cache-diverged-in"] == "system"
    assert 0 < int(headers["cache-diverged-at"]) < before


def test_a_prompt_that_is_there_to_its_end_differs_nowhere(server: Running) -> None:
    chat(server, f"second {WORDS}", "Hello")
    headers, usage = chat(server, f"second {WORDS}", "Hello")
    assert int(headers["cached-tokens"]) == usage["prompt_tokens"] - 1
    assert "cache-diverged-at" not in headers


def test_what_a_second_choice_finds_of_the_first_was_read_by_its_own_request(server: Running) -> None:
    headers, usage = chat(server, f"third {WORDS}", "Hello", n=3)
    assert (headers["cached-tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == ("0", 0)


def test_turns_that_differ_in_what_is_for_another_server_are_read_once(server: Running) -> None:
    """The shape of Claude Code's requests: the nonce changes with each, before everything else."""

    def turn(nonce: str, *messages: dict[str, Any]) -> Any:
        line = f"x-anthropic-billing-header: cc_version=2.1.332.7b4; cc_entrypoint=cli; cch={nonce};"
        system = [{"type": "text", "text": line}, {"type": "text", "text": f"You are an agent. {WORDS}"}]
        _, answer = answered(server, "/v1/messages", system=system, messages=list(messages), max_tokens=2)
        return answer["usage"]

    user = {"role": "user", "content": f"Read a file. {WORDS}"}
    first = turn("eb6c6", user)
    call = {"type": "tool_use", "id": "toolu_1", "name": "read", "input": {"path": "a"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "It is empty."}
    second = turn("0aaa9", user, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]})
    read_before = first["input_tokens"] + first["cache_read_input_tokens"]
    assert second["cache_read_input_tokens"] >= 0.98 * read_before
