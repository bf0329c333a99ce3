"""What a client writes into a system prompt for its own server is left out, in every dialect, and named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.chat.conversation import Conversation
from tests.support.running import serving_script
from tests.support.scripted_events import ScriptedEvents
from tests.support.scripted_service import Running, running
from tests.support.tiny_model import write_tiny_model

NAME = "x-anthropic-billing-header"
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
USER = {"role": "user", "content": "hi"}


def line(nonce: str) -> str:
    return f"{NAME}: cc_version=2.1.332.7b4; cc_entrypoint=cli; cch={nonce};"


def texts(*blocks: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in blocks]


def bodies(nonce: str) -> list[tuple[str, dict[str, Any]]]:
    """As Claude Code sends it, and as it arrives where something between has joined its blocks."""
    joined, on_one_line = f"{line(nonce)}\nYou are an agent.", f"{line(nonce)}You are an agent."
    return [
        (MESSAGES, {"system": texts(line(nonce), "You are an agent."), "messages": [USER]}),
        (MESSAGES, {"system": joined, "messages": [USER]}),
        (MESSAGES, {"messages": [{"role": "system", "content": on_one_line}, USER]}),
        (CHAT, {"messages": [{"role": "system", "content": joined}, USER]}),
        (CHAT, {"messages": [{"role": "developer", "content": texts(line(nonce), "You are an agent.")}, USER]}),
        (RESPONSES, {"instructions": on_one_line, "input": "hi"}),
        (RESPONSES, {"input": [{"role": "developer", "content": joined}, USER]}),
    ]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedEvents()) as up:
        yield up


def prompt(server: Running, path: str, body: dict[str, Any]) -> tuple[Conversation, str | None]:
    reply = server.send("POST", path, body)
    assert reply.status == 200, reply.body
    asked = server.service.requests[-1].prompt
    assert isinstance(asked, Conversation)
    return asked, reply.headers.get("x-configi-ignored")


@pytest.mark.parametrize("form", range(len(bodies(""))))
def test_two_turns_that_differ_in_it_are_one_prompt(server: Running, form: int) -> None:
    (path, first), (_, second) = bodies("eb6c6")[form], bodies("0aaa9")[form]
    one, ignored = prompt(server, path, first)
    assert one == prompt(server, path, second)[0]
    assert [(message.role, message.text) for message in one.messages] == [
        ("system", "You are an agent."),
        ("user", "hi"),
    ]
    assert ignored == NAME
    assert server.service.requests[-1].notes == (
        f"left out of the system prompt, as it differs with every request: {NAME}",
    )


def test_tokenize_counts_what_chat_reads(server: Running) -> None:
    def tokenized(*system: str) -> tuple[list[int], str | None]:
        body = {"messages": [*({"role": "system", "content": text} for text in system), USER]}
        reply = server.send("POST", "/tokenize", body)
        return reply.json()["tokens"], reply.headers.get("x-configi-ignored")

    assert tokenized(f"{line('eb6c6')}\nYou are an agent.") == (tokenized("You are an agent.")[0], NAME)


@pytest.mark.parametrize(
    "text",
    [
        "You are an agent.\nThe time is 2026-11-26 10:15:42.",
        "Working directory: /home/me\nGit status: M a.py\nSession: 7f3e",
        f"Explain what {line('a')} means.",
        f"{NAME}: is what the client writes.",
        "<environment_details>\nCurrent time: 10:15:42\n</environment_details>",
    ],
)
def test_what_is_for_the_model_stays_however_often_it_changes(server: Running, text: str) -> None:
    for path, body in (
        (CHAT, {"messages": [{"role": "system", "content": text}, USER]}),
        (MESSAGES, {"system": text, "messages": [USER]}),
        (RESPONSES, {"instructions": text, "input": "hi"}),
    ):
        asked, ignored = prompt(server, path, body)
        assert (asked.messages[0].text, ignored) == (text, None)
        assert server.service.requests[-1].notes == ()


def test_what_a_user_says_is_never_changed(server: Running) -> None:
    for path in (CHAT, MESSAGES):
        asked, _ = prompt(server, path, {"messages": [{"role": "user", "content": line("a") + "hi"}]})
        assert asked.messages[0].text == line("a") + "hi"


def test_a_conversation_of_nothing_else_stays_one(server: Running) -> None:
    asked, ignored = prompt(server, CHAT, {"messages": [{"role": "system", "content": line("a")}]})
    assert (asked.messages[0].text, ignored) == (line("a"), None)


def test_the_log_names_it_and_holds_nothing_of_it(tmp_path: Path) -> None:
    with serving_script(tmp_path, write_tiny_model(tmp_path / "model")) as up:
        path, body = bodies("eb6c6")[3]
        assert up.post(path, body | {"max_tokens": 1})[0] == 200
        logged = up.log.read_text()
    assert f"differs with every request: {NAME}" in logged
    assert "eb6c6" not in logged
