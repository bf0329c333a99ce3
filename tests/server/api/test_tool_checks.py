"""Declarations of tools are judged alike in every dialect, on a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.settings.types import LimitSettings, Settings
from tests.support.scripted_events import ScriptedEvents
from tests.support.scripted_service import Reply, Running, running

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
ALL = (CHAT, RESPONSES, MESSAGES)
SAID = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedEvents(Settings(limits=LimitSettings(max_tools=2)))) as up:
        yield up


def declared(path: str, **tool: Any) -> dict[str, Any]:
    if path == CHAT:
        return {"type": "function", "function": tool}
    return {"type": "function", **tool} if path == RESPONSES else tool


def send(server: Running, path: str, *tools: dict[str, Any], **fields: Any) -> Reply:
    said = {"input": "hi"} if path == RESPONSES else {"messages": SAID}
    return server.send("POST", path, {**said, "tools": [declared(path, **tool) for tool in tools], **fields})


def refusal(reply: Reply) -> str:
    assert reply.status == 400, reply.body
    return str(reply.json()["error"]["message"])


@pytest.mark.parametrize("path", ALL)
def test_their_number_is_bounded(server: Running, path: str) -> None:
    tools = [{"name": f"tool{index}"} for index in range(3)]
    assert send(server, path, *tools[:2]).status == 200
    assert "at most 2" in refusal(send(server, path, *tools))


def test_so_are_those_inside_of_a_namespace(server: Running) -> None:
    inner = [declared(RESPONSES, name=f"tool{index}") for index in range(3)]
    body = {"input": "hi", "tools": [{"type": "namespace", "name": "space", "tools": inner}]}
    assert "at most 2" in refusal(server.send("POST", RESPONSES, body))


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize("name", [None, "", 5, "a\nb", "a" * 257])
def test_a_name_is_one_that_a_model_can_be_told(server: Running, path: str, name: Any) -> None:
    assert "name must be a name of 1 to 256 printable characters" in refusal(send(server, path, {"name": name}))


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("strict", "yes", "strict must be a boolean"), ("description", 5, "description must be a string")],
)
def test_what_has_the_wrong_type_is_not_taken_for_absent(
    server: Running, path: str, key: str, value: Any, words: str
) -> None:
    assert words in refusal(send(server, path, {"name": "look", key: value}))


def test_a_switch_of_the_choice_is_one(server: Running) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": "yes"}
    words = refusal(send(server, MESSAGES, {"name": "look"}, tool_choice=choice))
    assert "tool_choice.disable_parallel_tool_use must be a boolean" in words


def test_a_tool_in_the_form_of_another_dialect_is_not_left_out_as_one_of_the_servers(server: Running) -> None:
    body = {"messages": SAID, "tools": [declared(CHAT, name="look")]}
    assert "tools.0 is declared as for chat completions" in refusal(server.send("POST", MESSAGES, body))


def test_responses_take_the_choice_of_a_tool_in_the_form_of_chat_completions(server: Running) -> None:
    for choice in ({"type": "function", "name": "look"}, {"type": "function", "function": {"name": "look"}}):
        assert send(server, RESPONSES, {"name": "look"}, tool_choice=choice).status == 200
        assert server.service.requests[-1].options.tool_choice.names == ("look",)
    assert "tool_choice.name" in refusal(send(server, RESPONSES, {"name": "look"}, tool_choice={"type": "function"}))
    odd = {"type": "function", "name": "gone", "function": "look"}
    assert "names 'gone'" in refusal(send(server, RESPONSES, {"name": "look"}, tool_choice=odd))
