"""What POST /v1/responses answers, whole and streamed, with the OpenAI SDK, on a real socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI

from server.chat.deltas import Finish, TextDelta, ToolCallDelta, Usage
from server.chat.parts import Message
from server.errors import EngineFailed
from tests.support.response_calls import CALLS, WEATHER
from tests.support.scripted_events import ScriptedEvents
from tests.support.scripted_service import MODEL


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


def test_tools_of_a_namespace_are_called_by_name_and_answered_with_it(client: OpenAI, service: ScriptedEvents) -> None:
    service.says(ToolCallDelta(0, 0, "c", "files__read", "{}"), Finish(0, "tool_calls", 1), Usage(1, 1, 0))
    reading = {"type": "function", "name": "read", "parameters": {"type": "object", "properties": {}}}
    tools: Any = [reading, {"type": "namespace", "name": "files", "description": "On disk.", "tools": [reading]}]
    answer = client.responses.create(model=MODEL, input="x", tools=tools)
    call = answer.output[0]
    assert call.type == "function_call" and (call.name, call.namespace) == ("read", "files")
    assert [tool.name for tool in service.asked.tools] == ["read", "files__read"]
