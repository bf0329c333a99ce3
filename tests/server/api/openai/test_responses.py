"""POST /v1/responses and its siblings, with the OpenAI SDK, on a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai import OpenAI

from server.chat.deltas import Finish, TextDelta, ToolCallDelta, Usage
from server.chat.parts import Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from server.chat.shapes import JsonSchema
from server.chat.tools import Tool, ToolChoice
from server.errors import ContextLengthExceeded, EngineFailed
from server.settings.types import Settings
from tests.support.scripted_events import END, THOUGHT_THEN_CALL, ScriptedEvents
from tests.support.scripted_service import MODEL, Running, running

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a place.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}
CALLS = (
    *THOUGHT_THEN_CALL,
    ToolCallDelta(0, 1, "call_b", "patch", ""),
    ToolCallDelta(0, 1, arguments='{"input": "*** Begin\\n\\"x\\""}'),
    *END,
)


@pytest.fixture(scope="module")
def up() -> Iterator[tuple[Running, ScriptedEvents]]:
    service = ScriptedEvents(Settings())
    with running(service, guarded=True) as server:
        yield server, service


@pytest.fixture
def service(up: tuple[Running, ScriptedEvents]) -> ScriptedEvents:
    up[1].says()
    up[1].held = False
    return up[1]


@pytest.fixture
def client(up: tuple[Running, ScriptedEvents]) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{up[0].url}/v1", api_key="any", max_retries=0, timeout=20) as sdk:
        yield sdk


@contextmanager
def refused(param: str) -> Iterator[None]:
    with pytest.raises(openai.BadRequestError) as caught:
        yield
    assert caught.value.param == param, caught.value.message


def test_a_plain_answer(client: OpenAI, service: ScriptedEvents) -> None:
    answer = client.responses.create(model=MODEL, input="Capital of France?", instructions="Be brief.")
    assert (answer.output_text, answer.status, answer.model) == ("Paris.", "completed", MODEL)
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (30, 2, 32)
    assert answer.usage.input_tokens_details.cached_tokens == 12
    assert service.asked.messages == (
        Message.plain("system", "Be brief."),
        Message.plain("user", "Capital of France?"),
    )


def test_thought_text_and_calls_are_items_in_their_order(client: OpenAI, service: ScriptedEvents) -> None:
    service.says(*CALLS)
    patch: Any = {"type": "custom", "name": "patch", "description": "Edits."}
    answer = client.responses.create(
        model=MODEL,
        input="Weather?",
        tools=[WEATHER, patch],
        include=["reasoning.encrypted_content"],
    )
    thought, text, call, custom = answer.output
    assert thought.type == "reasoning" and thought.content is not None
    assert (thought.content[0].text, bool(thought.encrypted_content)) == ("They want weather.", True)
    assert (text.type, answer.output_text) == ("message", "Let me look.")
    assert call.type == "function_call"
    assert (call.call_id, call.name, json.loads(call.arguments)) == ("call_a", "weather", {"place": "Paris"})
    assert custom.type == "custom_tool_call"
    assert (custom.call_id, custom.name, custom.input) == ("call_b", "patch", '*** Begin\n"x"')
    assert answer.usage is not None and answer.usage.output_tokens_details.reasoning_tokens == 4
    assert [tool.name for tool in service.asked.tools] == ["weather", "patch"]


def test_a_stream_tells_every_beginning_delta_and_end_with_its_number(client: OpenAI, service: ScriptedEvents) -> None:
    service.says(*CALLS)
    patch: Any = {"type": "custom", "name": "patch"}
    with client.responses.create(model=MODEL, input="Weather?", tools=[WEATHER, patch], stream=True) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.to_dict() for item in done] == [item.to_dict() for item in events[-1].response.output]
    for event in events:
        if hasattr(event, "output_index"):
            item = event.item if hasattr(event, "item") else None
            assert item is None or item.id == done[event.output_index].id
            assert not hasattr(event, "item_id") or event.item_id == done[event.output_index].id


@pytest.mark.parametrize("asked", [{"summary": "auto"}, {"generate_summary": "detailed"}])
def test_a_client_that_asks_for_summaries_finds_the_thought_there(
    client: OpenAI, service: ScriptedEvents, asked: Any
) -> None:
    service.says(*CALLS)
    with client.responses.stream(model=MODEL, input="Weather?", tools=[WEATHER], reasoning=asked) as stream:
        events = list(stream)
        answer = stream.get_final_response()
    told = [event.type.removeprefix("response.reasoning_") for event in events if "reasoning" in event.type]
    assert told == ["summary_part.added", *["summary_text.delta"] * 2, "summary_text.done", "summary_part.done"]
    thought: Any = answer.output[0]
    assert ([part.to_dict() for part in thought.summary], thought.content) == (
        [{"type": "summary_text", "text": "They want weather."}], [],
    )  # fmt: skip
    assert answer.reasoning is not None and answer.reasoning.summary in asked.values()


def test_the_stream_helper_of_the_sdk_parses_an_answer(client: OpenAI, service: ScriptedEvents) -> None:
    service.says(*CALLS)
    with client.responses.stream(model=MODEL, input="Weather?", tools=[WEATHER]) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert ("".join(deltas), final.output_text) == ("Let me look.", "Let me look.")


def test_a_cut_answer_is_incomplete_and_so_is_its_last_item(client: OpenAI, service: ScriptedEvents) -> None:
    service.says(
        TextDelta(0, "Once"),
        ToolCallDelta(0, 0, "c", "weather", '{"pl'),
        Finish(0, "length", 5),
        Usage(9, 5, 0),
    )
    answer = client.responses.create(model=MODEL, input="x", max_output_tokens=5, tools=[WEATHER])
    assert answer.incomplete_details is not None
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert [item.status for item in answer.output] == ["completed", "incomplete"]


def test_a_stream_that_fails_says_so_with_what_there_was(client: OpenAI, service: ScriptedEvents) -> None:
    service.says(TextDelta(0, "Par"), EngineFailed("The engine ended."))
    with client.responses.create(model=MODEL, input="x", stream=True) as stream:
        last = list(stream)[-1]
    assert last.type == "response.failed" and last.response.error is not None
    assert (last.response.status, last.response.error.message) == ("failed", "The engine ended.")
    assert last.response.output_text == "Par"


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


def test_an_answer_sent_back_is_read_as_it_was_said(client: OpenAI, service: ScriptedEvents) -> None:
    service.says(*CALLS)
    patch: Any = {"type": "custom", "name": "patch"}
    encrypted: Any = ["reasoning.encrypted_content"]
    first = client.responses.create(
        model=MODEL,
        input="Weather?",
        tools=[WEATHER, patch],
        include=encrypted,
        store=False,
    )
    sent_back: Any = [item.to_dict() for item in first.output]
    del sent_back[0]["content"]  # clients that keep nothing but the enclosed thought
    client.responses.create(model=MODEL, input=[{"role": "user", "content": "Weather?"}, *sent_back])
    assert service.asked.messages[1].parts == (
        ReasoningPart("They want weather."),
        TextPart("Let me look."),
        ToolCallPart("call_a", "weather", '{"place": "Paris"}'),
        ToolCallPart("call_b", "patch", '{"input": "*** Begin\\n\\"x\\""}'),
    )


def test_a_thought_that_another_server_enclosed_is_left_out_and_named(client: OpenAI) -> None:
    items: Any = [
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"},
        {"role": "user", "content": "hi"},
    ]
    raw = client.responses.with_raw_response.create(model=MODEL, input=items)
    assert raw.headers["x-configi-ignored"] == "input.0.encrypted_content"


def test_tools_of_a_namespace_are_called_by_name_and_answered_with_it(client: OpenAI, service: ScriptedEvents) -> None:
    service.says(ToolCallDelta(0, 0, "c", "files__read", "{}"), Finish(0, "tool_calls", 1), Usage(1, 1, 0))
    reading = {"type": "function", "name": "read", "parameters": {"type": "object", "properties": {}}}
    tools: Any = [reading, {"type": "namespace", "name": "files", "description": "On disk.", "tools": [reading]}]
    answer = client.responses.create(model=MODEL, input="x", tools=tools)
    call = answer.output[0]
    assert call.type == "function_call" and (call.name, call.namespace) == ("read", "files")
    assert [tool.name for tool in service.asked.tools] == ["read", "files__read"]


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


def test_a_stored_answer_can_be_asked_for_continued_listed_and_deleted(client: OpenAI, service: ScriptedEvents) -> None:
    first = client.responses.create(model=MODEL, input="Capital?", instructions="Be brief.")
    assert client.responses.retrieve(first.id).to_dict() == first.to_dict()
    second = client.responses.create(model=MODEL, input="And Italy?", previous_response_id=first.id)
    assert [message.text for message in service.asked.messages] == ["Capital?", "Paris.", "And Italy?"]
    third = client.responses.create(model=MODEL, input="And Spain?", previous_response_id=second.id)
    listed = client.responses.input_items.list(third.id, order="asc", limit=2)
    assert [item.type for item in listed.data] == ["message", "message"] and listed.has_more
    assert [item.id for item in listed] == [
        item.id for item in client.responses.input_items.list(third.id, order="asc")
    ]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    unknown: Any = {"type": "item_reference", "id": second.output[0].id}
    client.responses.create(model=MODEL, input=[unknown, {"role": "user", "content": "Sure?"}])
    assert [message.text for message in service.asked.messages] == ["Paris.", "Sure?"]


def test_what_is_not_to_be_stored_is_not(client: OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="x", store=False)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input="y", previous_response_id=answer.id)
    assert (refused.value.param, refused.value.code) == ("previous_response_id", "previous_response_not_found")


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


def test_a_response_can_be_cancelled_while_it_is_made(client: OpenAI, service: ScriptedEvents) -> None:
    service.says(TextDelta(0, "never"), Finish(0, "stop", 1), Usage(1, 1, 0))
    service.held = True
    service.go_on.clear()
    with client.responses.create(model=MODEL, input="x", stream=True) as stream:
        created = next(stream)
        assert created.type == "response.created"
        assert client.responses.cancel(created.response.id).status == "cancelled"
        service.go_on.set()
        last = list(stream)[-1]
    assert last.type == "response.failed" and last.response.status == "cancelled"
    assert client.responses.cancel(created.response.id).status == "cancelled"


def test_compacting_keeps_what_the_user_said_and_sums_up_the_rest(client: OpenAI, service: ScriptedEvents) -> None:
    service.says(TextDelta(0, "Goal: fix it."), Finish(0, "stop", 4), Usage(40, 4, 30))
    items: Any = [{"role": "user", "content": "Fix it."}, {"role": "assistant", "content": "Done so far: half."}]
    raw = client.responses.with_raw_response.compact(model=MODEL, input=items)
    assert [item.type for item in raw.parse().output] == ["message", "compaction"]
    assert raw.parse().usage.input_tokens == 40
    again = json.loads(raw.content)["output"]
    service.says()
    client.responses.create(model=MODEL, input=[*again, {"role": "user", "content": "Go on."}])
    texts = [message.text for message in service.asked.messages]
    assert texts[0] == "Fix it." and "Goal: fix it." in texts[1] and texts[2] == "Go on."


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
        ({"input": "x", "tools": [{"type": "function"}]}, "tools.0"),
        ({"input": "x", "tool_choice": {"type": "function", "name": "gone"}}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format"),
        ({"input": "x", "top_logprobs": 99}, "top_logprobs"),
    ],
)
def test_what_cannot_be_done_is_named(client: OpenAI, body: dict[str, Any], param: str) -> None:
    with refused(param):
        client.post("/responses", body=body, cast_to=object)


def test_a_large_input_is_read_like_a_small_one(client: OpenAI, service: ScriptedEvents) -> None:
    text = "word " * 40_000
    tools: Any = [WEATHER]
    first = client.responses.create(model=MODEL, input=text, tools=tools, tool_choice="required")
    client.responses.create(model=MODEL, input=text, previous_response_id=first.id)
    assert [len(message.text) for message in service.asked.messages] == [len(text), len("Paris."), len(text)]
