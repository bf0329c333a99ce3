"""What goes on from one response to the next: stored, sent back, compacted, cancelled."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response
from openai.types.responses.response_item import ResponseItem
from pydantic import TypeAdapter

from server.chat.deltas import Finish, TextDelta, Usage
from server.chat.parts import ReasoningPart, TextPart, ToolCallPart
from tests.support.response_calls import CALLS, WEATHER
from tests.support.scripted_events import ScriptedEvents
from tests.support.scripted_service import MODEL


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


def test_a_response_can_be_cancelled_while_it_is_made(client: OpenAI, service: ScriptedEvents) -> None:
    service.says(TextDelta(0, "never"), Finish(0, "stop", 1), Usage(1, 1, 0))
    service.held = True
    service.go_on.clear()
    with client.responses.create(model=MODEL, input="x", stream=True) as stream:
        created = next(stream)
        assert created.type == "response.created"
        cancelled = client.responses.cancel(created.response.id)
        # Whole, as the type of the SDK has it.
        assert (cancelled.status, cancelled.output_text, cancelled.created_at) == (
            "cancelled",
            "",
            created.response.created_at,
        )
        Response.model_validate(cancelled.to_dict())
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


def test_a_large_input_is_read_like_a_small_one(client: OpenAI, service: ScriptedEvents) -> None:
    text = "word " * 40_000
    tools: Any = [WEATHER]
    first = client.responses.create(model=MODEL, input=text, tools=tools, tool_choice="required")
    client.responses.create(model=MODEL, input=text, previous_response_id=first.id)
    assert [len(message.text) for message in service.asked.messages] == [len(text), len("Paris."), len(text)]


def test_input_items_are_listed_in_the_form_of_the_sdk(client: OpenAI, service: ScriptedEvents) -> None:
    """Whatever form they were sent in: texts alone, nulls, no ids."""
    items: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Weather?", "id": None, "status": None},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}", "id": None},
        {"type": "function_call_output", "call_id": "c", "output": "18", "id": None},
        {"role": "assistant", "content": "18 degrees."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And Rome?"}]},
    ]
    stored = client.responses.create(model=MODEL, input=items)
    listed = client.responses.input_items.list(stored.id, order="asc").data
    read: TypeAdapter[ResponseItem] = TypeAdapter(ResponseItem)
    for item in listed:
        read.validate_python(item.to_dict(), strict=True)
    assert [item.id for item in listed] == [f"item_{index}" for index in range(6)]
    parts = [(item.content[0].type, item.content[0].text) for item in listed if item.type == "message"]
    assert parts == [
        ("input_text", "Be brief."), ("input_text", "Weather?"), ("output_text", "18 degrees."),
        ("input_text", "And Rome?"),
    ]  # fmt: skip
    assert client.responses.input_items.list(stored.id, order="asc", after="item_4").data[0].id == "item_5"


def test_an_order_that_there_is_not_is_refused(client: OpenAI) -> None:
    stored = client.responses.create(model=MODEL, input="x")
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.input_items.list(stored.id, extra_query={"order": "newest"})
    assert refused.value.param == "order"


def test_an_empty_id_of_the_response_before_is_none(client: OpenAI, service: ScriptedEvents) -> None:
    """As in the first turn of clients whose language has no null for it."""
    assert client.responses.create(model=MODEL, input="x", previous_response_id="").output_text == "Paris."
    assert [message.text for message in service.asked.messages] == ["x"]
