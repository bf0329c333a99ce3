"""Tools and the choice among them, on a real socket: what becomes of every way to give them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.chat.conversation import Conversation, GenerationRequest
from server.chat.tools import Tool, ToolChoice
from tests.support.scripted_service import Running, ScriptedService, running

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def _tool(name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


WEATHER = _tool(description="Now.", parameters=SCHEMA)
TIME = _tool("time")
NAMED = {"type": "function", "function": {"name": "time"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedService()) as up:
        yield up


def _request(server: Running, **fields: Any) -> GenerationRequest:
    reply = server.chat(**fields)
    assert reply.status == 200, reply.body
    return server.service.requests[-1]


def _conversation(server: Running, **fields: Any) -> Conversation:
    prompt = _request(server, **fields).prompt
    assert isinstance(prompt, Conversation)
    return prompt


TOOLS: list[tuple[list[Any], tuple[Tool, ...]]] = [
    ([WEATHER], (Tool("weather", "Now.", SCHEMA),)),
    ([TIME], (Tool("time"),)),
    ([_tool(parameters={}, description=None, strict=None)], (Tool("weather", "", {}),)),
    ([_tool(parameters=SCHEMA, strict=True)], (Tool("weather", "", SCHEMA, True),)),
    ([{"function": {"name": "a.b/c-d"}}], (Tool("a.b/c-d"),)),
    ([TIME, TIME], (Tool("time"),)),
    ([], ()),
]


@pytest.mark.parametrize(("tools", "expected"), TOOLS, ids=range(len(TOOLS)))
def test_tools_are_read_in_every_shape(server: Running, tools: list[Any], expected: tuple[Tool, ...]) -> None:
    assert _conversation(server, tools=tools).tools == expected


def test_a_schema_as_large_as_the_largest_sent_is_taken(server: Running) -> None:
    properties = {
        f"option_{i}": {"type": ["string", "null"], "description": "x" * 60, "pattern": "^a"} for i in range(40)
    }
    defs = {"$defs": {"a": {"type": "string"}}, "$schema": "http://json-schema.org/draft-07/schema#"}
    tools = [_tool(f"tool_{i}", parameters={**SCHEMA, **defs, "properties": properties}) for i in range(25)]
    assert len(_conversation(server, tools=tools).tools) == 25


CHOICES: list[tuple[dict[str, Any], ToolChoice]] = [
    ({}, ToolChoice()),
    ({"tool_choice": "auto"}, ToolChoice()),
    ({"tool_choice": "none"}, ToolChoice("none")),
    ({"tool_choice": "required"}, ToolChoice("required")),
    ({"tool_choice": "any", "parallel_tool_calls": False}, ToolChoice("required", (), parallel=False)),
    ({"tool_choice": NAMED}, ToolChoice("required", ("time",), parallel=False)),
    ({"tool_choice": {"type": "function", "name": "time"}}, ToolChoice("required", ("time",), parallel=False)),
    ({"tool_choice": ALLOWED}, ToolChoice("required", ("time",))),
    ({"tool_choice": {"type": "auto"}}, ToolChoice()),
    ({"parallel_tool_calls": False}, ToolChoice(parallel=False)),
]


@pytest.mark.parametrize(("fields", "choice"), CHOICES, ids=range(len(CHOICES)))
def test_every_tool_choice_arrives(server: Running, fields: dict[str, Any], choice: ToolChoice) -> None:
    request = _request(server, tools=[WEATHER, TIME], **fields)
    assert request.options.tool_choice == choice
    assert isinstance(request.prompt, Conversation)
    assert [tool.name for tool in request.prompt.tools] == ["weather", "time"]


@pytest.mark.parametrize("choice", ["none", "auto"])
def test_a_choice_that_asks_for_nothing_needs_no_tools(server: Running, choice: str) -> None:
    assert _conversation(server, tool_choice=choice).tools == ()


FUNCTIONS: list[tuple[Any, ToolChoice]] = [
    (None, ToolChoice(parallel=False)),
    ("auto", ToolChoice(parallel=False)),
    ("none", ToolChoice("none", parallel=False)),
    ({"name": "time"}, ToolChoice("required", ("time",), parallel=False)),
]


@pytest.mark.parametrize(("call", "choice"), FUNCTIONS, ids=range(len(FUNCTIONS)))
def test_the_former_fields_say_the_same(server: Running, call: Any, choice: ToolChoice) -> None:
    functions = [WEATHER["function"], TIME["function"]]
    request = _request(server, functions=functions, function_call=call)
    assert request.options.tool_choice == choice
    assert isinstance(request.prompt, Conversation)
    assert request.prompt.tools == (Tool("weather", "Now.", SCHEMA), Tool("time"))


def test_keys_of_tools_that_mean_nothing_here_are_named_once(server: Running) -> None:
    tools = [{**_tool(f"t{i}", examples=[]), "defer_loading": True, "cache_control": {}} for i in range(3)]
    reply = server.chat(tools=tools)
    assert reply.status == 200
    assert reply.headers["x-configi-ignored"] == "tools.defer_loading, tools.function.examples"


BAD_TOOLS: dict[str, tuple[dict[str, Any], str]] = {
    "a number": ({"tools": [5]}, "tools.0"),
    "no list": ({"tools": {}}, "tools"),
    "web search": ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    "custom": ({"tools": [TIME, {"type": "custom", "custom": {"name": "a"}}]}, "tools.1.type"),
    "no function": ({"tools": [{"type": "function"}]}, "tools.0.function"),
    "no name": ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
    "an empty name": ({"tools": [_tool("")]}, "tools.0.function.name"),
    "a name with a line break": ({"tools": [_tool("a\nb")]}, "tools.0.function.name"),
    "a long name": ({"tools": [_tool("a" * 257)]}, "tools.0.function.name"),
    "parameters are a list": ({"tools": [_tool(parameters=[])]}, "tools.0.function.parameters"),
    "description is a number": ({"tools": [_tool(description=5)]}, "tools.0.function.description"),
    "strict is a word": ({"tools": [_tool(strict="yes")]}, "tools.0.function.strict"),
    "two of one name": ({"tools": [_tool(), WEATHER]}, "tools"),
    "513": ({"tools": [_tool(f"t{i}") for i in range(513)]}, "tools"),
    "both forms": ({"tools": [TIME], "functions": [{"name": "a"}]}, "functions"),
    "a bad function": ({"functions": [{"name": 5}]}, "functions.0.name"),
    "required without tools": ({"tool_choice": "required"}, "tool_choice"),
    "an unknown choice": ({"tools": [TIME], "tool_choice": "maybe"}, "tool_choice"),
    "an unknown kind of choice": ({"tools": [TIME], "tool_choice": {"type": "custom"}}, "tool_choice"),
    "an unknown name": ({"tools": [WEATHER], "tool_choice": NAMED}, "tool_choice"),
    "a choice without a name": ({"tools": [TIME], "tool_choice": {"type": "function"}}, "tool_choice.name"),
    "an unknown allowed tool": ({"tools": [WEATHER], "tool_choice": ALLOWED}, "tool_choice.allowed_tools.tools"),
    "a bad mode": (
        {"tools": [TIME], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "x", "tools": [NAMED]}}},
        "tool_choice.allowed_tools.mode",
    ),
    "nothing allowed": (
        {"tools": [TIME], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
        "tool_choice.allowed_tools.tools",
    ),
    "parallel is a word": ({"tools": [TIME], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    "an unknown function": ({"functions": [{"name": "a"}], "function_call": {"name": "b"}}, "function_call"),
    "a bad function_call": ({"functions": [{"name": "a"}], "function_call": 5}, "function_call"),
}


@pytest.mark.parametrize("case", BAD_TOOLS)
def test_bad_tools_are_a_400_that_names_the_place(server: Running, case: str) -> None:
    fields, param = BAD_TOOLS[case]
    reply = server.chat(**fields)
    assert (reply.status, reply.json()["error"]["param"]) == (400, param), reply.body
    assert server.chat().status == 200


@pytest.mark.parametrize(
    ("last", "fields", "is_open"),
    [
        ("user", {}, True),
        ("user", {"add_generation_prompt": True}, True),
        ("user", {"add_generation_prompt": False}, False),
        ("user", {"add_generation_prompt": False, "continue_final_message": False}, False),
        ("assistant", {}, True),
        ("assistant", {"continue_final_message": True, "add_generation_prompt": False}, True),
        ("assistant", {"continue_final_message": False}, False),
        ("assistant", {"continue_final_message": False, "add_generation_prompt": False}, False),
        ("user", {"continue_final_message": True}, None),
        ("assistant", {"add_generation_prompt": True}, None),
        ("assistant", {"continue_final_message": False, "add_generation_prompt": True}, None),
    ],
)
def test_tokenize_renders_for_an_answer_or_as_it_stands(
    server: Running, last: str, fields: dict[str, Any], is_open: bool | None
) -> None:
    messages = [{"role": "user", "content": "a"}] + ([{"role": "assistant", "content": "b"}] if last != "user" else [])
    body = {"messages": messages, "tools": [WEATHER], "chat_template_kwargs": {"enable_thinking": True}, **fields}
    reply = server.send("POST", "/tokenize", body)
    if is_open is None:
        assert reply.status == 400
        assert reply.json()["error"]["param"] in fields
        return
    assert reply.status == 200, reply.body
    prompt = server.service.tokenized[-1]
    assert isinstance(prompt, Conversation)
    assert prompt.open is is_open
    assert prompt.tools == (Tool("weather", "Now.", SCHEMA),)
    assert prompt.template_variables == {"enable_thinking": True}
    assert prompt.reasoning.enabled
