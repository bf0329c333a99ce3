"""Tools, reasoning and structured output through the real OpenAI Python SDK: plain, streamed, and its helpers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from server.chat.deltas import Delta, ReasoningDelta, TextDelta, ToolCallDelta
from server.chat.shapes import JsonSchema
from tests.support.scripted_service import MODEL, ScriptedService, running


class Weather(BaseModel):
    """The weather of a city now."""

    city: str


CALLS: list[Delta] = [
    ReasoningDelta(0, "Which "),
    ReasoningDelta(0, "city?"),
    ToolCallDelta(0, 0, "call_a", "Weather"),
    ToolCallDelta(0, 0, arguments='{"city": '),
    ToolCallDelta(0, 0, arguments='"Paris"}'),
    ToolCallDelta(0, 1, "call_b", "Weather", '{"city": "Rome"}'),
]
SCRIPTS: dict[str, list[Delta]] = {
    "weather": CALLS,
    "json": [TextDelta(0, '{"city": '), TextDelta(0, '"Paris"}')],
    "one": CALLS[2:5],
}
TOOL = openai.pydantic_function_tool(Weather)
CHOICES: list[Any] = [
    "auto",
    "none",
    "required",
    {"type": "function", "function": {"name": "Weather"}},
    {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "Weather"}}]},
    },
]


@pytest.fixture(scope="module")
def service() -> ScriptedService:
    return ScriptedService(scripts=SCRIPTS)


@pytest.fixture(scope="module")
def client(service: ScriptedService) -> Iterator[openai.OpenAI]:
    with (
        running(service) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=60) as sdk,
    ):
        yield sdk


def _user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("choice", CHOICES, ids=range(len(CHOICES)))
def test_every_tool_choice_is_understood_whole_and_streamed(client: openai.OpenAI, choice: Any) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": _user("weather"), "tools": [TOOL], "tool_choice": choice}
    whole = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion().choices[0]
    assert whole.finish_reason == final.finish_reason == "tool_calls"
    calls = [(call.id, call.type, call.function.name, call.function.arguments) for call in whole.message.tool_calls]
    assert calls == [
        ("call_a", "function", "Weather", '{"city": "Paris"}'),
        ("call_b", "function", "Weather", '{"city": "Rome"}'),
    ]
    assert [(c.id, c.type, c.function.name, c.function.arguments) for c in final.message.tool_calls] == calls
    assert whole.message.reasoning_content == final.message.reasoning_content == "Which city?"
    assert whole.message.content is None


def test_the_stream_helper_tells_each_piece_and_parses_the_arguments(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=_user("weather"), tools=[TOOL]) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [Weather(city="Paris"), Weather(city="Rome")]
    assert [call.function.parsed_arguments for call in final.choices[0].message.tool_calls or []] == [
        Weather(city="Paris"), Weather(city="Rome"),
    ]  # fmt: skip


def test_parse_gives_models_of_calls_and_of_content(client: openai.OpenAI, service: ScriptedService) -> None:
    calls = client.chat.completions.parse(model=MODEL, messages=_user("one"), tools=[TOOL])
    assert calls.choices[0].message.tool_calls[0].function.parsed_arguments == Weather(city="Paris")
    content = client.chat.completions.parse(model=MODEL, messages=_user("json"), response_format=Weather)
    assert content.choices[0].message.parsed == Weather(city="Paris")
    shape = service.requests[-1].options.shape
    assert isinstance(shape, JsonSchema)
    assert shape.strict
    with client.chat.completions.stream(model=MODEL, messages=_user("json"), response_format=Weather) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == Weather(city="Paris")


def test_an_answer_can_be_sent_back_as_the_sdk_has_it(client: openai.OpenAI, service: ScriptedService) -> None:
    first = client.chat.completions.create(model=MODEL, messages=_user("weather"), tools=[TOOL]).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "18"}
    answer = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[*_user("weather"), first, result], tools=[TOOL]
    )
    assert "x-configi-ignored" not in answer.headers
    _, reply, told = service.requests[-1].prompt.messages
    assert [type(part).__name__ for part in reply.parts] == ["ReasoningPart", "ToolCallPart", "ToolCallPart"]
    assert told.parts[0].name == "Weather"


def _canary(client: openai.OpenAI, number: int) -> str:
    """A request whose tools and schema hold a word of its own; the answer to it, as text."""
    word = f"canary-{number:03d}-{number * 7919 % 1000:03d}"
    schema = {"type": "object", "properties": {word: {"const": word}}}
    tools = [{"type": "function", "function": {"name": f"{word}-{k}", "parameters": schema}} for k in range(2)]
    shape = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    asked: dict[str, Any] = {"model": MODEL, "messages": _user("echo"), "tools": tools, "response_format": shape}
    if number % 2:
        answer = client.chat.completions.create(**asked).model_dump_json()
    else:
        with client.chat.completions.stream(**asked) as stream:
            for _ in stream:
                pass
            answer = stream.get_final_completion().model_dump_json()
    assert answer.count(word) >= 7, "its own canary is not in the answer"
    return answer.replace(word, "")


def test_500_interleaved_requests_hold_no_foreign_canary(client: openai.OpenAI) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: _canary(client, number), range(500)))
    assert len(answers) == 500
    assert not [answer for answer in answers if "canary" in answer]
    assert json.loads(answers[0])["choices"][0]["finish_reason"] == "tool_calls"
