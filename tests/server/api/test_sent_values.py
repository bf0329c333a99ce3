"""Values that clients send and that mean something: each is taken by every dialect that has the field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.chat.conversation import Conversation, GenerationOptions, GenerationRequest
from server.chat.tools import ToolChoice
from tests.support.scripted_events import ScriptedEvents
from tests.support.scripted_service import Running, running

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
ALL = (CHAT, TEXT, RESPONSES, MESSAGES)
TALKS = (CHAT, RESPONSES, MESSAGES)
SAID: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": SAID},
    TEXT: {"prompt": "hi"},
    RESPONSES: {"input": "hi"},
    MESSAGES: {"messages": SAID},
}
SCHEMA = {"type": "object", "properties": {}}
TOOLS: dict[str, Any] = {
    CHAT: {"type": "function", "function": {"name": "look", "parameters": SCHEMA}},
    RESPONSES: {"type": "function", "name": "look", "parameters": SCHEMA},
    MESSAGES: {"name": "look", "input_schema": SCHEMA},
}
# What each dialect calls it.
LIMIT = {CHAT: "max_tokens", TEXT: "max_tokens", RESPONSES: "max_output_tokens", MESSAGES: "max_tokens"}
STOP = {CHAT: "stop", TEXT: "stop", RESPONSES: "stop", MESSAGES: "stop_sequences"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedEvents()) as up:
        yield up


def request(server: Running, path: str, **fields: Any) -> GenerationRequest:
    reply = server.send("POST", path, BODIES[path] | fields)
    assert reply.status == 200, reply.body
    return server.service.requests[-1]


def options(server: Running, path: str, **fields: Any) -> GenerationOptions:
    return request(server, path, **fields).options


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize(("value", "expected"), [(-1, 0), (0, 0), (-1.0, 0), (40.0, 40)])
def test_a_top_k_of_minus_1_or_0_is_off(server: Running, path: str, value: float, expected: int) -> None:
    assert options(server, path, top_k=value).top_k == expected


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize("value", [0, 0.0, 1])
def test_a_top_p_of_0_is_taken(server: Running, path: str, value: float) -> None:
    assert options(server, path, top_p=value).top_p == value


WHOLE: list[tuple[str, str, str, float]] = [
    *[(path, LIMIT[path], "max_tokens", 5.0) for path in ALL],
    *[(path, name, name, 5.0) for path in (CHAT, TEXT, RESPONSES) for name in ("seed", "top_k")],
    (CHAT, "max_completion_tokens", "max_tokens", 5.0),
    (CHAT, "n", "n", 1.0),
    (TEXT, "n", "n", 1.0),
    (CHAT, "min_tokens", "min_tokens", 2.0),
    (TEXT, "logprobs", "top_logprobs", 2.0),
    (RESPONSES, "top_logprobs", "top_logprobs", 2.0),
]


@pytest.mark.parametrize(("path", "name", "option", "value"), WHOLE)
def test_a_whole_number_may_be_written_as_a_float(
    server: Running, path: str, name: str, option: str, value: float
) -> None:
    read = getattr(options(server, path, **{name: value}), option)
    assert (read, type(read)) == (int(value), int)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"logprobs": True, "top_logprobs": 2.0}),
        (CHAT, {"thinking_token_budget": 9.0}),
        (CHAT, {"thinking": {"type": "enabled", "budget_tokens": 9.0}}),
        (CHAT, {"reasoning": {"max_tokens": 9.0}}),
        (TEXT, {"best_of": 1.0}),
        (RESPONSES, {"reasoning": {"max_tokens": 9.0}}),
        (RESPONSES, {"max_tool_calls": 3.0, "n": 1.0}),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 9.0}}),
        # Values of refused fields that ask for nothing.
        (CHAT, {"typical_p": 1.0, "mirostat": 0.0, "top_n_sigma": -1.0, "repeat_last_n": -1.0}),
    ],
)
def test_so_may_those_inside_of_fields(server: Running, path: str, fields: dict[str, Any]) -> None:
    request(server, path, **fields)


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize(("value", "expected"), [("", ()), ([], ()), ("END", ("END",)), (["A", "B"], ("A", "B"))])
def test_a_stop_may_be_empty_or_a_string(server: Running, path: str, value: Any, expected: tuple[str, ...]) -> None:
    assert options(server, path, **{STOP[path]: value}).stop == expected


@pytest.mark.parametrize("path", [CHAT, TEXT, RESPONSES])
@pytest.mark.parametrize("value", [0, 0.0])
def test_no_top_logprobs_without_logprobs_ask_for_nothing(server: Running, path: str, value: float) -> None:
    assert options(server, path, top_logprobs=value).top_logprobs is None


@pytest.mark.parametrize("path", TALKS)
def test_tools_that_are_not_to_be_called_are_still_declared(server: Running, path: str) -> None:
    choice: Any = {"type": "none"} if path == MESSAGES else "none"
    asked = request(server, path, tools=[TOOLS[path]], tool_choice=choice)
    assert isinstance(asked.prompt, Conversation)
    assert [tool.name for tool in asked.prompt.tools] == ["look"]
    assert asked.options.tool_choice == ToolChoice("none")


@pytest.mark.parametrize("kind", ["text", "input_text"])
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_parts_of_text_have_two_names(server: Running, path: str, kind: str) -> None:
    said = [{"role": "user", "content": [{"type": kind, "text": "a"}, {"type": kind, "text": "b"}]}]
    asked = request(server, path, **{"input" if path == RESPONSES else "messages": said})
    assert isinstance(asked.prompt, Conversation)
    assert asked.prompt.messages[-1].text == "ab"


NULLS: dict[str, tuple[str, ...]] = {
    CHAT: (
        "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k",
        "seed", "stop", "n", "logprobs", "top_logprobs", "logit_bias", "tools", "tool_choice", "parallel_tool_calls",
        "response_format", "reasoning_effort", "user", "metadata", "functions", "function_call", "keep_alive",
        "return_progress",
    ),
    TEXT: (
        "model", "suffix", "max_tokens", "temperature", "logprobs", "top_logprobs", "stop", "seed", "echo", "best_of",
    ),
    RESPONSES: (
        "model", "instructions", "tools", "tool_choice", "max_output_tokens", "temperature", "top_p", "reasoning",
        "text", "store", "include", "previous_response_id", "conversation", "prompt", "background", "truncation",
        "metadata", "top_logprobs", "max_tool_calls", "stream", "stream_options", "prompt_cache_key",
    ),
    MESSAGES: (
        "model", "max_tokens", "system", "stop_sequences", "stream", "temperature", "top_k", "top_p", "tools",
        "tool_choice", "thinking", "output_config", "metadata", "container", "mcp_servers", "context_management",
    ),
}  # fmt: skip


@pytest.mark.parametrize("path", ALL)
def test_an_explicit_null_is_absent(server: Running, path: str) -> None:
    plain = request(server, path)
    asked = request(server, path, **dict.fromkeys(NULLS[path]))
    assert (asked.model, asked.prompt, asked.options) == (plain.model, plain.prompt, plain.options)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"stream": True, "stream_options": {"include_usage": None}}),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "a", "description": None, "parameters": None}}]}),
        (CHAT, {"messages": [{"role": "user", "content": "x", "name": None, "tool_calls": None, "refusal": None}]}),
        (RESPONSES, {"reasoning": {"effort": None, "summary": None}, "text": {"format": None, "verbosity": None}}),
        (RESPONSES, {"tools": [{"type": "function", "name": "a", "parameters": None, "strict": None}]}),
        (RESPONSES, {"input": [{"role": "user", "content": "x", "id": None, "status": None, "type": "message"}]}),
        (RESPONSES, {"input": [
            {"role": "user", "content": "x"},
            {"type": "reasoning", "id": None, "summary": [], "content": None, "encrypted_content": None},
            {"type": "function_call", "call_id": "c", "name": "a", "arguments": "{}", "id": None, "status": None},
            {"type": "function_call_output", "call_id": "c", "output": "y", "id": None, "status": None},
        ]}),
        (MESSAGES, {"tools": [{"name": "a", "description": None, "input_schema": None, "cache_control": None}]}),
        (MESSAGES, {"tools": [TOOLS[MESSAGES]], "tool_choice": {"type": "auto", "disable_parallel_tool_use": None}}),
        (MESSAGES, {"thinking": {"type": "disabled", "budget_tokens": None}, "output_config": {"effort": None}}),
        (MESSAGES, {"messages": [
            {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": None, "citations": None}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "a", "input": None}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": None}]},
        ]}),
    ],
)  # fmt: skip
def test_so_is_one_inside_of_a_field(server: Running, path: str, fields: dict[str, Any]) -> None:
    request(server, path, **fields)


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize("value", [-1, -1.0])
def test_a_limit_of_minus_1_is_up_to_the_context(server: Running, path: str, value: float) -> None:
    assert options(server, path, **{LIMIT[path]: value}).max_tokens is None


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize("fields", [{}, {"model": ""}, {"model": " "}, {"model": None}])
def test_no_model_is_the_default_one(server: Running, path: str, fields: dict[str, Any]) -> None:
    assert request(server, path, **fields).model is None


@pytest.mark.parametrize("path", ALL)
def test_a_time_to_stay_in_memory_reaches_the_model_or_is_a_400(server: Running, path: str) -> None:
    assert request(server, path, keep_alive="5m").keep_alive_s == 300
    assert request(server, path).keep_alive_s is None
    reply = server.send("POST", path, BODIES[path] | {"keep_alive": "soon"})
    assert reply.status == 400
    assert "keep_alive should be seconds" in reply.json()["error"]["message"]
