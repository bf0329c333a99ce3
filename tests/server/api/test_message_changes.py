"""What newer Anthropic SDKs put into a conversation beside what is said: tools that come and go, texts that pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from anthropic import Anthropic, BadRequestError

from server.chat.parts import ToolResultPart
from tests.support.scripted_events import ScriptedEvents
from tests.support.scripted_service import MODEL, Running

WEATHER: dict[str, Any] = {"name": "weather", "input_schema": {"type": "object"}}
SEARCH: dict[str, Any] = {"name": "search", "input_schema": {"type": "object"}}


@pytest.fixture
def client(up: tuple[Running, ScriptedEvents]) -> Iterator[Anthropic]:
    with Anthropic(base_url=up[0].url, api_key="any", max_retries=0, timeout=20) as sdk:
        yield sdk


def _create(client: Anthropic, messages: list[Any], **fields: Any) -> str | None:
    """What was ignored."""
    raw = client.beta.messages.with_raw_response.create(model=MODEL, max_tokens=5, messages=messages, **fields)
    ignored: str | None = raw.headers.get("x-configi-ignored")
    return ignored


def _changed(*blocks: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": "a"}, {"role": "system", "content": list(blocks)}]


def test_tools_come_and_go_in_the_conversation(client: Anthropic, service: ScriptedEvents) -> None:
    new = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": SEARCH}}
    gone = {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "weather"}}
    back = {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "weather"}}
    assert _create(client, _changed(new), tools=[WEATHER]) is None
    assert [tool.name for tool in service.asked.tools] == ["weather", "search"]
    _create(client, _changed(new, gone), tools=[WEATHER], tool_choice={"type": "tool", "name": "search"})
    assert [tool.name for tool in service.asked.tools] == ["search"]
    _create(client, _changed(gone, back), tools=[WEATHER])
    assert [tool.name for tool in service.asked.tools] == ["weather"]
    of_anthropic = {"type": "tool_removal", "tool": {"type": "mcp_toolset_reference", "server_name": "x"}}
    assert _create(client, _changed(of_anthropic), tools=[WEATHER]) == "content.tool_removal"


def test_a_system_text_for_one_turn_is_not_read_after_it(client: Anthropic, service: ScriptedEvents) -> None:
    passing = {"role": "system", "content": "Be brief.", "clear_at": "next_user_message"}
    turn = [{"role": "user", "content": "a"}, passing]
    _create(client, turn)
    assert [message.text for message in service.asked.messages] == ["a", "Be brief."]
    _create(client, [*turn, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}])
    assert [message.text for message in service.asked.messages] == ["a", "b", "c"]


def test_a_result_of_the_browser_is_its_text(client: Anthropic, service: ScriptedEvents) -> None:
    used = {"type": "tool_use", "id": "t", "name": "browser", "input": {}}
    content = [{"type": "text", "text": "clicked"}, {"type": "browser_state", "tabs": []}]
    result = {"type": "tool_result", "tool_use_id": "t", "content": content}
    ignored = _create(client, [{"role": "assistant", "content": [used]}, {"role": "user", "content": [result]}])
    assert ignored == "content.browser_state"
    assert service.asked.messages[-1].parts == (ToolResultPart("t", "clicked", "browser"),)


def test_a_conversation_of_nothing_that_can_be_read_is_answered(client: Anthropic, service: ScriptedEvents) -> None:
    upload = {"type": "container_upload", "file_id": "f"}
    assert _create(client, [{"role": "user", "content": [upload]}]) == "content.container_upload"
    assert [(message.role, message.text) for message in service.asked.messages] == [("user", "")]


def test_modes_of_thinking_that_no_model_here_has_are_named(client: Anthropic, service: ScriptedEvents) -> None:
    messages = [{"role": "user", "content": "a"}]
    assert _create(client, messages, thinking={"type": "between_tools"}) == "thinking.type"
    assert service.asked.reasoning.enabled is False
    updates = {"type": "adaptive", "display": "updates", "block_binding": {}}
    assert _create(client, messages, thinking=updates) == "thinking.display, thinking.block_binding"
    assert service.asked.reasoning.enabled is True


def test_the_models_are_what_the_sdk_takes_for_models(client: Anthropic) -> None:
    (model,) = client.models.list(limit=1000)
    assert (model.id, model.type, model.display_name, model.max_input_tokens) == (MODEL, "model", MODEL, 4096)
    assert client.models.retrieve(MODEL).created_at == model.created_at


def test_a_refused_request_has_its_id_where_the_sdk_looks(client: Anthropic) -> None:
    with pytest.raises(BadRequestError) as caught:
        _create(client, [{"role": "nobody", "content": "a"}])
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]
    counted = client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "a"}])
    assert counted._request_id


def test_keys_that_mean_nothing_here_are_named(client: Anthropic, service: ScriptedEvents) -> None:
    tool = {**WEATHER, "input_examples": [{}], "eager_input_streaming": True, "cache_control": {"type": "ephemeral"}}
    budget = {"task_budget": {"type": "tokens", "total": 5}}
    messages = [{"role": "user", "content": "a", "output_config": {"effort": "low"}}]
    ignored = _create(client, messages, tools=[tool], output_config=budget)
    assert ignored == "output_config.task_budget, messages.output_config, tools.input_examples"
