"""POST /v1/messages, with the Anthropic SDK, on a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic

from server.chat.conversation import Reasoning
from server.chat.deltas import Finish, PrefillProgress, TextDelta, ToolCallDelta, Usage
from server.chat.parts import Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from server.chat.shapes import JsonSchema
from server.chat.tools import Tool, ToolChoice
from server.errors import ContextLengthExceeded, EngineFailed
from tests.support.scripted_events import END, THOUGHT_THEN_CALL, ScriptedEvents
from tests.support.scripted_service import MODEL, Running

WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather of a place.",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}
HI: list[Any] = [{"role": "user", "content": "Weather?"}]
CALLS = (PrefillProgress(30, 30, 12), *THOUGHT_THEN_CALL, ToolCallDelta(0, 1, "call_b", "now", ""), *END)


@pytest.fixture
def client(up: tuple[Running, ScriptedEvents]) -> Iterator[Anthropic]:
    with Anthropic(base_url=up[0].url, api_key="any", max_retries=0, timeout=20) as sdk:
        yield sdk


def test_a_plain_answer(client: Anthropic, service: ScriptedEvents) -> None:
    answer = client.messages.create(model=MODEL, max_tokens=9, system="Be brief.", messages=HI)
    assert [block.to_dict() for block in answer.content] == [{"type": "text", "text": "Paris."}]
    assert (answer.stop_reason, answer.model, answer.role) == ("end_turn", MODEL, "assistant")
    usage = answer.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (18, 12, 2)
    assert answer._request_id
    assert service.asked.messages == (Message.plain("system", "Be brief."), Message.plain("user", "Weather?"))
    assert service.requests[-1].options.reasoning == Reasoning(enabled=False)


def test_thought_text_and_calls_are_blocks_in_their_order(client: Anthropic, service: ScriptedEvents) -> None:
    service.says(*CALLS)
    answer = client.messages.create(
        model=MODEL, max_tokens=99, messages=HI, tools=[WEATHER], thinking={"type": "enabled", "budget_tokens": 1024}
    )
    thought, text, call, bare = answer.content
    assert thought.type == "thinking" and (thought.thinking, bool(thought.signature)) == ("They want weather.", True)
    assert text.type == "text" and text.text == "Let me look."
    assert call.type == "tool_use" and (call.id, call.name, call.input) == ("call_a", "weather", {"place": "Paris"})
    assert bare.type == "tool_use" and bare.input == {}
    assert answer.stop_reason == "tool_use"
    assert service.requests[-1].options.reasoning == Reasoning(True, None, 1024)
    assert service.asked.tools == (Tool("weather", WEATHER["description"], WEATHER["input_schema"]),)


def test_a_stream_tells_every_blocks_beginning_deltas_and_end(client: Anthropic, service: ScriptedEvents) -> None:
    service.says(*CALLS)
    with client.messages.create(model=MODEL, max_tokens=99, messages=HI, tools=[WEATHER], stream=True) as stream:
        events = list(stream)
    told = [
        f"{event.type}.{event.delta.type}" if event.type == "content_block_delta" else event.type for event in events
    ]
    assert told == [
        "message_start",
        "content_block_start", "content_block_delta.thinking_delta", "content_block_delta.thinking_delta",
        "content_block_delta.signature_delta", "content_block_stop",
        "content_block_start", "content_block_delta.text_delta", "content_block_stop",
        "content_block_start", "content_block_delta.input_json_delta", "content_block_delta.input_json_delta",
        "content_block_stop",
        "content_block_start", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert [event.index for event in events if event.type == "content_block_start"] == [0, 1, 2, 3]


def test_the_stream_helper_of_the_sdk_gathers_what_an_answer_would_be(
    client: Anthropic, service: ScriptedEvents
) -> None:
    service.says(*CALLS)
    whole = client.messages.create(model=MODEL, max_tokens=99, messages=HI, tools=[WEATHER])
    with client.messages.stream(model=MODEL, max_tokens=99, messages=HI, tools=[WEATHER]) as stream:
        gathered = stream.get_final_message()
    assert [block.to_dict() for block in gathered.content] == [block.to_dict() for block in whole.content]
    assert (gathered.stop_reason, gathered.usage.to_dict()) == (whole.stop_reason, whole.usage.to_dict())


def test_a_thought_that_is_not_shown_still_comes_back(client: Anthropic, service: ScriptedEvents) -> None:
    service.says(*CALLS)
    thinking: Any = {"type": "adaptive", "display": "omitted"}
    answer = client.messages.create(
        model=MODEL, max_tokens=99, messages=HI, thinking=thinking, output_config={"effort": "high"}
    )
    assert answer.content[0].type == "thinking" and answer.content[0].thinking == ""
    assert service.requests[-1].options.reasoning == Reasoning(True, "high", None)
    results: Any = [
        {"type": "tool_result", "tool_use_id": "call_a", "content": [{"type": "text", "text": "rain"}]},
        {"type": "tool_result", "tool_use_id": "call_b", "content": "no clock", "is_error": True},
        {"type": "text", "text": "Go on."},
    ]
    history: Any = [*HI, {"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
    client.messages.create(model=MODEL, max_tokens=9, messages=history)
    assert service.asked.messages[1:] == (
        Message("assistant", (
            ReasoningPart("They want weather."),
            TextPart("Let me look."),
            ToolCallPart("call_a", "weather", '{"place": "Paris"}'),
            ToolCallPart("call_b", "now", "{}"),
        )),
        Message("tool", (ToolResultPart("call_a", "rain", "weather"),)),
        Message("tool", (ToolResultPart("call_b", "Error: no clock", "now"),)),
        Message.plain("user", "Go on."),
    )  # fmt: skip


def test_system_messages_stand_where_they_were_sent_and_the_billing_line_goes(
    client: Anthropic, service: ScriptedEvents
) -> None:
    system: Any = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=ab12;"},
        {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
    ]
    messages: Any = [*HI, {"role": "system", "content": [{"type": "text", "text": "Now in plan mode."}]}, *HI]
    raw = client.messages.with_raw_response.create(model=MODEL, max_tokens=9, system=system, messages=messages)
    assert raw.headers["x-configi-ignored"] == "x-anthropic-billing-header"
    assert [(message.role, message.text) for message in service.asked.messages] == [
        ("system", "You are an agent."), ("user", "Weather?"), ("system", "Now in plan mode."), ("user", "Weather?"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "choice"),
    [
        ({"type": "auto"}, ToolChoice()),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(parallel=False)),
        ({"type": "any"}, ToolChoice("required")),
        ({"type": "tool", "name": "weather"}, ToolChoice("required", ("weather",))),
        ({"type": "none"}, ToolChoice("none")),
    ],
)
def test_every_tool_choice_reaches_the_model(
    client: Anthropic, service: ScriptedEvents, asked: Any, choice: ToolChoice
) -> None:
    client.messages.create(model=MODEL, max_tokens=9, messages=HI, tools=[WEATHER], tool_choice=asked)
    assert service.requests[-1].options.tool_choice == choice


def test_tools_that_anthropic_defines_are_left_out_and_named(client: Anthropic, service: ScriptedEvents) -> None:
    tools: Any = [{"type": "web_search_20250305", "name": "web_search"}, {"type": "custom", **WEATHER, "strict": True}]
    raw = client.messages.with_raw_response.create(model=MODEL, max_tokens=9, messages=HI, tools=tools)
    assert raw.headers["x-configi-ignored"] == "tools.web_search_20250305"
    assert [(tool.name, tool.strict) for tool in service.asked.tools] == [("weather", True)]


def test_a_schema_for_the_text_reaches_the_model(client: Anthropic, service: ScriptedEvents) -> None:
    form: Any = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    client.messages.create(model=MODEL, max_tokens=9, messages=HI, output_config=form)
    assert service.requests[-1].options.shape == JsonSchema({"type": "object"}, True, "output_config.format")


@pytest.mark.parametrize(
    ("finish", "reason", "sequence"),
    [
        (Finish(0, "length", 1), "max_tokens", None),
        (Finish(0, "stop", 1), "end_turn", None),
        (Finish(0, "stop", 1, "END"), "stop_sequence", "END"),
    ],
)
def test_every_ending_has_its_reason(
    client: Anthropic, service: ScriptedEvents, finish: Finish, reason: str, sequence: str | None
) -> None:
    service.says(TextDelta(0, "x"), finish, Usage(1, 1, 0))
    answer = client.messages.create(model=MODEL, max_tokens=9, messages=HI, stop_sequences=["END"])
    assert (answer.stop_reason, answer.stop_sequence) == (reason, sequence)
    assert service.requests[-1].options.stop == ("END",)


def test_a_call_that_was_cut_says_what_there_was(client: Anthropic, service: ScriptedEvents) -> None:
    service.says(ToolCallDelta(0, 0, "c", "weather", '{"pl'), Finish(0, "length", 5), Usage(9, 5, 0))
    answer = client.messages.create(model=MODEL, max_tokens=5, messages=HI, tools=[WEATHER])
    block = answer.content[0]
    assert block.type == "tool_use" and block.input == {"INVALID_JSON": '{"pl'} and answer.stop_reason == "max_tokens"


def test_tokens_are_counted_as_the_prompt_is_read(client: Anthropic) -> None:
    assert client.messages.count_tokens(model=MODEL, messages=HI).input_tokens == len("Weather?")


def test_progress_is_told_in_pings_to_those_who_ask(
    up: tuple[Running, ScriptedEvents], service: ScriptedEvents
) -> None:
    service.says(*CALLS)
    body = {"model": MODEL, "max_tokens": 9, "messages": HI, "stream": True, "return_progress": True}
    pings = [event for event in up[0].send("POST", "/v1/messages", body).events() if event["type"] == "ping"]
    progress = {"total": 30, "cache": 12, "processed": 30, "time_ms": 0, "state": "prefill"}
    assert pings == [{"type": "ping", "prompt_progress": progress}]


def test_errors_are_worded_as_anthropic_words_them(
    up: tuple[Running, ScriptedEvents], client: Anthropic, service: ScriptedEvents
) -> None:
    service.says(ContextLengthExceeded("The context is 10 tokens."))
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model=MODEL, max_tokens=9, messages=HI)
    assert caught.value.body == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "prompt is too long: The context is 10 tokens."},
    }
    service.says(TextDelta(0, "Par"), EngineFailed("The engine ended."))
    with (
        pytest.raises(anthropic.APIStatusError, match="The engine ended"),
        client.messages.stream(model=MODEL, max_tokens=9, messages=HI) as stream,
    ):
        stream.get_final_message()
    large = up[0].send("POST", "/v1/messages", b"x" * (8 * 10**6 + 1))
    assert (large.status, json.loads(large.body)["error"]["type"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"messages": [{"role": "narrator", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages.0.content.0.tool_use_id"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url"}}]}]}, "document"),
        ({"tools": [{"name": "a"}, {"name": "a"}]}, "tools.1.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "gone"}}, "tool_choice"),
        ({"container": "c"}, "container"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
    ],
)
def test_what_cannot_be_done_is_named(client: Anthropic, changed: dict[str, Any], named: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=named):
        client.post("/v1/messages", body={"model": MODEL, "max_tokens": 9, "messages": HI} | changed, cast_to=object)


def test_what_a_document_is_called_reaches_the_model(client: Anthropic, service: ScriptedEvents) -> None:
    text = {"type": "text", "media_type": "text/plain", "data": "Sales rose."}
    blocks: Any = [
        {"type": "document", "source": text, "title": "Q3.txt", "context": "Draft.", "citations": {"enabled": True}},
        {"type": "document", "source": text, "title": None},
        {
            "type": "search_result",
            "source": "https://a.example",
            "title": "A",
            "content": [{"type": "text", "text": "B"}],
        },
        {"type": "text", "text": "Which file?"},
    ]
    client.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": blocks}])
    assert service.asked.messages[0].text == (
        "title: Q3.txt\ncontext: Draft.\nSales rose.Sales rose.title: A\nsource: https://a.example\nBWhich file?"
    )
    odd: Any = [{"role": "user", "content": [{"type": "document", "source": text, "title": 5}]}]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.content\.0\.title must be a string"):
        client.messages.create(model=MODEL, max_tokens=9, messages=odd)
