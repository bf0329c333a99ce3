"""What clients break on, row by row: each is something of a stream that one of them was seen to need.

Asked is a tool round trip on the wire, by no client at all, so that a row fails by itself and says whose need it is.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import Running, serving_script
from tests.support.tool_model import write_tool_model

WEATHER = "What is the weather in Paris? Use the tool."
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather of a city.", "parameters": PLACE}
USER = [{"role": "user", "content": WEATHER}]


@dataclass(frozen=True)
class Wire:
    """A stream as it was sent: the names of its events, their data, and all lines."""

    names: list[str]
    data: list[Any]
    lines: list[str]

    def of(self, kind: str) -> list[Any]:
        return [event for event in self.data if event["type"] == kind]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder: Path = tmp_path_factory.mktemp("needs")
    with serving_script(folder, write_tool_model(folder / "model"), ["--speaks"]) as running:
        yield running


def _stream(server: Running, path: str, body: dict[str, Any]) -> Wire:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", path, json.dumps(body | {"stream": True}), {"content-type": "application/json"})
    lines = connection.getresponse().read().decode().split("\n")
    connection.close()
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return Wire(names, [json.loads(item) for item in data if item != "[DONE]"], lines)


@pytest.fixture(scope="module")
def chat(server: Running) -> Wire:
    tools = [{"type": "function", "function": FUNCTION}]
    return _stream(server, "/v1/chat/completions", {"messages": USER, "tools": tools, "reasoning_effort": "high"})


def _calls(chat: Wire) -> list[Any]:
    return [call for chunk in chat.data for call in chunk["choices"][0]["delta"].get("tool_calls") or []]


CHAT: dict[str, Callable[[Wire], bool]] = {
    "every piece of a call has its index: openai-python, LangChain, openai-node, opencode, Zed": lambda wire: (
        [call["index"] for call in _calls(wire)] == [0] * len(_calls(wire))
    ),
    "a call has an id that is not empty: LiteLLM, Agents SDK, opencode, Continue, Cline, Copilot": lambda wire: bool(
        _calls(wire)[0]["id"]
    ),
    "a call says that it is a function: openai-node, Copilot": lambda wire: _calls(wire)[0]["type"] == "function",
    "arguments are a string: LangChain, Agents SDK, AI SDK, opencode, Qwen Code, Cline": lambda wire: (
        json.loads("".join(call["function"]["arguments"] for call in _calls(wire))) == {"city": "Paris"}
    ),
    "the first delta has the role: openai-node": lambda wire: (
        wire.data[0]["choices"][0]["delta"]["role"] == "assistant"
    ),
    "every choice has its index: openai-python, Agents SDK, openai-node, Zed": lambda wire: all(
        choice["index"] == 0 for chunk in wire.data for choice in chunk["choices"]
    ),
    "every chunk has id, created, model and object: openai-python": lambda wire: all(
        {"id", "created", "model", "object"} <= set(chunk) for chunk in wire.data
    ),
    "one chunk ends it, as tool_calls: AI SDK, openai-node, Qwen Code, Cline, Copilot, Roo Code": lambda wire: (
        [chunk["choices"][0]["finish_reason"] for chunk in wire.data if chunk["choices"][0]["finish_reason"]]
        == ["tool_calls"]
    ),
    "no chunk without choices comes unasked: naive scripts, VS Code": lambda wire: all(
        chunk["choices"] for chunk in wire.data
    ),
    "no event has a name: openai-python": lambda wire: wire.names == [],
    "reasoning has both of its names: Zed, Open WebUI, goose": lambda wire: any(
        delta.get("reasoning_content") and delta["reasoning_content"] == delta["reasoning"]
        for chunk in wire.data
        for delta in [chunk["choices"][0]["delta"]]
    ),
}


@pytest.mark.parametrize("need", CHAT)
def test_a_chat_stream_has_what_clients_need(chat: Wire, need: str) -> None:
    assert CHAT[need](chat), "\n".join(chat.lines)


@pytest.fixture(scope="module")
def responses(server: Running) -> Wire:
    return _stream(server, "/v1/responses", {"input": WEATHER, "tools": [{"type": "function"} | FUNCTION]})


def _named(wire: Wire) -> bool:
    return wire.names == [event["type"] for event in wire.data]


RESPONSES: dict[str, Callable[[Wire], bool]] = {
    "every item ends, with all of it: Codex": lambda wire: (
        [event["item"]["arguments"] for event in wire.of("response.output_item.done")] == ['{"city": "Paris"}']
    ),
    "it is completed, with its output and its usage: Codex": lambda wire: (
        [bool(event["response"]["output"] and event["response"]["usage"]) for event in wire.of("response.completed")]
        == [True]
    ),
    "items begin before their pieces: SDKs, Agents SDK": lambda wire: (
        wire.names.index("response.output_item.added") < wire.names.index("response.function_call_arguments.delta")
    ),
    "pieces say of which item they are: SDKs": lambda wire: all(
        event["item_id"] and event["output_index"] == 0 for event in wire.of("response.function_call_arguments.delta")
    ),
    "events are counted and named": lambda wire: (
        _named(wire) and [event["sequence_number"] for event in wire.data] == list(range(len(wire.data)))
    ),
}


@pytest.mark.parametrize("need", RESPONSES)
def test_a_stream_of_responses_has_what_clients_need(responses: Wire, need: str) -> None:
    assert RESPONSES[need](responses), "\n".join(responses.lines)


@pytest.fixture(scope="module")
def messages(server: Running) -> Wire:
    tools = [{"name": "weather", "input_schema": PLACE}]
    return _stream(server, "/v1/messages", {"max_tokens": 500, "messages": USER, "tools": tools})


MESSAGES: dict[str, Callable[[Wire], bool]] = {
    "events have their names in lines of their own: Claude Code": _named,
    "every block ends: Claude Code": lambda wire: (
        [event["index"] for event in wire.of("content_block_start")]
        == [event["index"] for event in wire.of("content_block_stop")]
        == [0]
    ),
    "a call says why it stopped, and what it cost": lambda wire: (
        [(event["delta"]["stop_reason"], bool(event["usage"]["output_tokens"])) for event in wire.of("message_delta")]
        == [("tool_use", True)]
    ),
    "it begins and ends": lambda wire: (wire.names[0], wire.names[-1]) == ("message_start", "message_stop"),
}


@pytest.mark.parametrize("need", MESSAGES)
def test_a_stream_of_messages_has_what_clients_need(messages: Wire, need: str) -> None:
    assert MESSAGES[need](messages), "\n".join(messages.lines)


BAD: dict[str, tuple[str, Any]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "long " * 9000}]}),
    "responses": ("/v1/responses", {"input": "long " * 9000}),
    "messages": ("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": "long " * 9000}]}),
}


@pytest.mark.parametrize("protocol", BAD)
def test_what_does_not_fit_is_refused_in_the_words_that_agents_know(server: Running, protocol: str) -> None:
    """Codex and pydantic-ai know the code, Claude Code the beginning; no agent sends a 400 again."""
    path, body = BAD[protocol]
    status, answer = server.post(path, body)
    assert status == 400
    if protocol == "messages":
        assert answer["error"]["message"].startswith("prompt is too long")
    else:
        assert answer["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", ["/v1/responses/resp_none", "/v1/nothing", "/models/none"])
def test_what_is_not_there_is_json(server: Running, path: str) -> None:
    status, answer = server.get(path)
    assert status == 404
    assert answer["error"]["message"]
