"""What POST /v1/responses is asked for: what of it reaches the model, and what is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai import OpenAI

from server.chat.parts import Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from server.chat.shapes import JsonSchema
from server.chat.tools import Tool, ToolChoice
from server.errors import ContextLengthExceeded
from tests.support.response_calls import WEATHER
from tests.support.scripted_events import ScriptedEvents
from tests.support.scripted_service import MODEL


@contextmanager
def refused(param: str) -> Iterator[None]:
    with pytest.raises(openai.BadRequestError) as caught:
        yield
    assert caught.value.param == param, caught.value.message


def test_what_other_servers_tools_did_is_left_out_by_name(client: OpenAI, service: ScriptedEvents) -> None:
    """As Codex has it in the history of a session that began elsewhere."""
    did: Any = [
        {"type": "local_shell_call", "call_id": "a", "status": "completed", "action": {"type": "exec", "command": []}},
        {"type": "local_shell_call_output", "call_id": "a", "output": "notes.txt"},
        {"type": "mcp_list_tools", "id": "m", "server_label": "x", "tools": []},
        {"type": "file_search_call", "id": "f", "status": "completed", "queries": ["x"]},
    ]
    raw = client.responses.with_raw_response.create(
        model=MODEL,
        input=[*did, {"role": "user", "content": "Go on."}],
        tools=[{"type": "local_shell"}, {"type": "image_generation"}],  # type: ignore[list-item]
        extra_body={"client_metadata": {"turn": "1"}},
    )
    assert raw.headers["x-configi-ignored"].split(", ") == [
        *(f"input.{item['type']}" for item in did), "tools.local_shell", "tools.image_generation",
    ]  # fmt: skip
    assert service.asked.messages == (Message.plain("user", "Go on."),)


def test_a_turn_of_an_agent_is_one_message(client: OpenAI, service: ScriptedEvents) -> None:
    items: Any = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be an agent."}]},
        {"type": "message", "role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Looking."}]},
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"place":"Paris"}'},
        {"type": "function_call", "call_id": "b", "name": "weather", "arguments": '{"place":"Rome"}'},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "function_call_output", "call_id": "a", "output": "rain"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "sun"}]},
    ]
    raw = client.responses.with_raw_response.create(model=MODEL, input=items, tools=[{"type": "web_search"}, WEATHER])
    assert raw.headers["x-configi-ignored"] == "input.web_search_call, tools.web_search"
    assert service.asked.messages == (
        Message.plain("system", "Be an agent."),
        Message.plain("user", "Weather?"),
        Message("assistant", (
            ReasoningPart("Hm."),
            TextPart("Looking."),
            ToolCallPart("a", "weather", '{"place":"Paris"}'),
            ToolCallPart("b", "weather", '{"place":"Rome"}'),
        )),
        Message("tool", (ToolResultPart("a", "rain", "weather"),)),
        Message("tool", (ToolResultPart("b", "sun", "weather"),)),
    )  # fmt: skip


def test_a_thought_that_another_server_enclosed_is_left_out_and_named(client: OpenAI) -> None:
    items: Any = [
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"},
        {"role": "user", "content": "hi"},
    ]
    raw = client.responses.with_raw_response.create(model=MODEL, input=items)
    assert raw.headers["x-configi-ignored"] == "input.0.encrypted_content"


@pytest.mark.parametrize(
    ("asked", "choice"),
    [
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "name": "weather"}, ToolChoice("required", ("weather",))),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
            ToolChoice("auto", ("weather",)),
        ),
    ],
)
def test_every_tool_choice_reaches_the_model(
    client: OpenAI, service: ScriptedEvents, asked: Any, choice: ToolChoice
) -> None:
    client.responses.create(model=MODEL, input="x", tools=[WEATHER], tool_choice=asked)
    assert service.requests[-1].options.tool_choice == choice
    assert service.asked.tools == (Tool("weather", WEATHER["description"], WEATHER["parameters"]),)


def test_a_schema_for_the_text_reaches_the_model(client: OpenAI, service: ScriptedEvents) -> None:
    form: Any = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    client.responses.create(model=MODEL, input="x", text={"format": form})
    assert service.requests[-1].options.shape == JsonSchema({"type": "object"}, True, "text.format")


@pytest.mark.parametrize("value", ["", []])
def test_an_empty_input_warms_the_model_up(client: OpenAI, service: ScriptedEvents, value: Any) -> None:
    client.responses.create(model=MODEL, input=value, instructions="Be brief.", max_output_tokens=1)
    assert service.asked.messages == (Message.plain("system", "Be brief."), Message.plain("user", ""))


def test_a_conversation_that_is_too_long_loses_its_oldest_turns_when_that_is_allowed(
    client: OpenAI, service: ScriptedEvents
) -> None:
    turns: Any = [{"role": "system", "content": "S"}]
    for index in range(8):
        turns += [{"role": "user", "content": f"u{index}"}, {"role": "assistant", "content": f"a{index}"}]
    turns.append({"role": "user", "content": "last"})
    too_long = ContextLengthExceeded("Too long.")
    service.says(too_long)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input=turns)
    assert caught.value.code == "context_length_exceeded"
    service.says(too_long, too_long)
    assert client.responses.create(model=MODEL, input=turns, truncation="auto").output_text == "Paris."
    kept = [message.text for message in service.asked.messages]
    assert (kept[0], kept[1][0], kept[-1]) == ("S", "u", "last") and len(kept) < len(turns)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": [{"role": "narrator", "content": "x"}]}, "input.0.role"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]},
            "input.0.content.0",
        ),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools.0.name"),
        ({"input": "x", "tool_choice": {"type": "function", "name": "gone"}}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format"),
        ({"input": "x", "top_logprobs": 99}, "top_logprobs"),
    ],
)
def test_what_cannot_be_done_is_named(client: OpenAI, body: dict[str, Any], param: str) -> None:
    with refused(param):
        client.post("/responses", body=body, cast_to=object)
