"""Items of a history that say little, and matter: what was summed up, changed, loaded or referred to."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI

from server.api.opaque import enclosed
from server.chat.conversation import GenerationRequest
from server.chat.parts import Message, ToolCallPart, ToolResultPart
from server.chat.shapes import JsonSchema
from tests.support.scripted_events import ScriptedEvents
from tests.support.scripted_service import MODEL

GO_ON: dict[str, Any] = {"role": "user", "content": "Go on."}
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
FORM = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}


def _asked(client: OpenAI, service: ScriptedEvents, *items: dict[str, Any], **fields: Any) -> tuple[Any, str | None]:
    """What arrives, and what was ignored."""
    given: Any = [*items, GO_ON]
    raw = client.responses.with_raw_response.create(model=MODEL, input=given, **fields)
    return service.requests[-1], raw.headers.get("x-configi-ignored")


def _tools(request: GenerationRequest) -> list[str]:
    return [tool.name for tool in request.prompt.tools]  # type: ignore[union-attr]


def test_what_another_server_summed_up_is_told_to_be_missing(client: OpenAI, service: ScriptedEvents) -> None:
    """A refusal would end the thread for good: its history is sent whole at every turn."""
    before = {"role": "user", "content": "Fix the bug."}
    request, ignored = _asked(client, service, before, {"type": "compaction", "encrypted_content": "gAAAA"})
    assert ignored == "input.1.encrypted_content"
    assert [message.text for message in request.prompt.messages] == [
        "Fix the bug.", "[what was said before is omitted: its summary cannot be read here]", "Go on.",
    ]  # fmt: skip
    request, ignored = _asked(client, service, {"type": "compaction", "encrypted_content": enclosed("The sum.")})
    assert (request.prompt.messages[0].text, ignored) == ("The sum.", None)


def test_the_last_update_of_the_configuration_holds(client: OpenAI, service: ScriptedEvents) -> None:
    first = {"type": "configuration_update", "reasoning": {"effort": "none"}, "text": {"format": FORM}}
    second = {"type": "configuration_update", "reasoning": {"effort": "high"}}
    request, ignored = _asked(client, service, first, second, reasoning={"effort": "low"})
    assert (request.options.reasoning.enabled, request.options.reasoning.effort) == (True, "high")
    assert isinstance(request.options.shape, JsonSchema)
    assert (request.prompt.messages, ignored) == ((Message.plain("user", "Go on."),), None)


def test_an_update_goes_on_with_a_stored_response(client: OpenAI, service: ScriptedEvents) -> None:
    update: Any = {"type": "configuration_update", "reasoning": {"effort": "high"}}
    before = client.responses.create(model=MODEL, input=[update, GO_ON])  # type: ignore[list-item]
    client.responses.create(model=MODEL, input="And then?", previous_response_id=before.id)
    assert service.requests[-1].options.reasoning.effort == "high"


def test_tools_that_the_conversation_brought_can_be_called(client: OpenAI, service: ScriptedEvents) -> None:
    search = {"type": "function", "name": "search", "parameters": {}}
    added = {"type": "additional_tools", "role": "developer", "tools": [WEATHER, {"type": "web_search"}]}
    found = {"type": "tool_search_output", "tools": [WEATHER, {"type": "namespace", "name": "web", "tools": [search]}]}
    request, ignored = _asked(client, service, added, found)
    assert (_tools(request), ignored) == (["weather", "search"], "tools.web_search")
    request, _ = _asked(client, service, added, tools=[WEATHER], tool_choice={"type": "function", "name": "weather"})
    assert _tools(request) == ["weather"]


def test_an_item_is_referred_to_by_nothing_but_its_id(client: OpenAI, service: ScriptedEvents) -> None:
    said = client.responses.create(model=MODEL, input="Where?").output[0]
    # What is referred to once is referred to at every turn that follows.
    for reference in ({"id": said.id}, {"type": "item_reference", "id": said.id}, {"id": said.id, "type": None}):
        request, _ = _asked(client, service, reference)
        assert (request.prompt.messages[0].role, request.prompt.messages[0].text) == ("assistant", "Paris.")


def test_what_was_referred_to_is_an_item_of_the_stored_input(client: OpenAI, service: ScriptedEvents) -> None:
    before = client.responses.create(model=MODEL, input="Where?")
    reference: Any = {"type": "item_reference", "id": before.output[0].id}
    after = client.responses.create(model=MODEL, input=[reference, GO_ON])  # type: ignore[list-item]
    client.responses.delete(before.id)
    assert [item.type for item in client.responses.input_items.list(after.id)] == ["message", "message"]
    client.responses.create(model=MODEL, input="And then?", previous_response_id=after.id)
    assert [message.text for message in service.asked.messages] == ["Paris.", "Go on.", "Paris.", "And then?"]


def test_a_result_without_the_id_of_its_call_finds_it(client: OpenAI, service: ScriptedEvents) -> None:
    calls = [{**CALL, "call_id": id, "name": name} for id, name in (("c1", "weather"), ("c2", "search"))]
    by_name = {"type": "function_call_output", "name": "search", "output": "found"}
    by_order = {"type": "function_call_output", "output": "rain"}
    request, _ = _asked(client, service, *calls, by_name, by_order)
    assert [message.parts[0] for message in request.prompt.messages[1:3]] == [
        ToolResultPart("c2", "found", "search"), ToolResultPart("c1", "rain", "weather"),
    ]  # fmt: skip


def test_keys_that_mean_nothing_here_are_named(client: OpenAI, service: ScriptedEvents) -> None:
    tool = {**WEATHER, "output_schema": {"type": "object"}, "defer_loading": True}
    _, ignored = _asked(client, service, reasoning={"mode": "pro", "effort": "low"}, text={"voice": "x"}, tools=[tool])
    assert ignored == "reasoning.mode, text.voice, tools.output_schema"


@pytest.mark.parametrize(
    ("arguments", "read"),
    [({"city": "Rome"}, '{"city": "Rome"}'), (None, "{}"), ("", "{}"), (" ", "{}"), ('{"a": 1}', '{"a": 1}')],
)
def test_arguments_come_in_every_form(client: OpenAI, service: ScriptedEvents, arguments: Any, read: str) -> None:
    call: Any = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": arguments}
    client.responses.create(model=MODEL, input=[call, {"type": "function_call_output", "call_id": "c", "output": "1"}])
    assert service.asked.messages[0].parts == (ToolCallPart("c", "weather", read),)


def test_a_call_has_an_id_of_its_own_or_one_of_its_place(client: OpenAI, service: ScriptedEvents) -> None:
    call = {"type": "function_call", "name": "weather", "arguments": "{}"}
    items: Any = [
        {**call, "id": "fc_1"}, call, {**call, "call_id": None},
        {"type": "function_call_output", "call_id": "fc_1", "output": "a"},
        {"type": "function_call_output", "output": "b"},
    ]  # fmt: skip
    client.responses.create(model=MODEL, input=items)
    asked = service.asked.messages
    assert [part.id for part in asked[0].parts if isinstance(part, ToolCallPart)] == ["fc_1", "call_1", "call_2"]
    results = [part for message in asked[1:] for part in message.parts if isinstance(part, ToolResultPart)]
    assert [(result.call_id, result.text) for result in results] == [("fc_1", "a"), ("call_1", "b")]


def test_arguments_that_are_no_object_are_refused(client: OpenAI) -> None:
    call: Any = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": [1]}
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input=[call])
    assert refused.value.param == "input.0.arguments"
