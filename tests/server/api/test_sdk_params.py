"""Everything that the SDKs' types allow is taken, or refused by name: no member of their unions is unknown here.

What is refused is what models here cannot do (images, files), in a sentence that begins with the place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types import beta
from anthropic.types.beta import message_create_params
from openai.types import chat, responses
from openai.types.responses import response_create_params

from tests.support.scripted_service import Reply, Running, ScriptedService, running
from tests.support.sdk_params import examples, fields, item, members

CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
WEATHER: dict[str, Any] = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
SAID = {"role": "user", "content": "Go on."}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedService(), guarded=True) as up:
        yield up


def _wrong(reply: Reply, field: str) -> str | None:
    """Why this is no answer to what an SDK's types allow."""
    if reply.status == 200:
        return None
    error = reply.json()["error"]
    told = error["message"].startswith(field) and (error.get("param") or field).startswith(field)
    by_name = reply.status == 400 and error.get("code", "unsupported_field") == "unsupported_field"
    meant = any(words in error["message"] for words in ("not supported", "no model here sees images", "reads text"))
    return None if told and by_name and meant else f"{reply.status} {error}"


def _answers(server: Running, path: str, bodies: Iterator[tuple[Any, dict[str, Any]]], field: str) -> dict[str, str]:
    """What is wrong, by what was sent."""
    wrong = {}
    for sent, body in bodies:
        why = _wrong(server.send("POST", path, body), field)
        if why is not None:
            wrong[str(sent)] = why
    return wrong


def test_every_item_of_responses_is_understood_or_named(server: Running) -> None:
    bodies = (
        (given, {"input": [CALL, given, SAID]})
        for given in examples(responses.ResponseInputItemParam)
        # What it refers to is stored nowhere.
        if given.get("type") != "item_reference" and given.keys() - {"type"} != {"id"}
    )
    assert _answers(server, "/v1/responses", bodies, "input.") == {}


def test_every_tool_of_responses_is_understood_or_named(server: Running) -> None:
    bodies = ((given, {"input": "x", "tools": [given]}) for given in examples(responses.ToolParam))
    assert _answers(server, "/v1/responses", bodies, "tools.") == {}


def test_every_block_of_messages_is_understood_or_named(server: Running) -> None:
    blocks = members(beta.BetaContentBlockParam)
    bodies = (
        (given, {"max_tokens": 5, "messages": [{"role": role, "content": [given]}, SAID]})
        for role in ("user", "assistant")
        # The union holds the blocks of answers, too, as objects of their own.
        for given in filter(None, examples(beta.BetaContentBlockParam))
    )
    assert len(blocks) > 20
    assert _answers(server, "/v1/messages", bodies, "messages.") == {}


def test_every_tool_of_messages_is_understood_or_named(server: Running) -> None:
    bodies = ((given, {"messages": [SAID], "tools": [given]}) for given in examples(beta.BetaToolUnionParam))
    assert _answers(server, "/v1/messages", bodies, "tools.") == {}


def test_every_message_of_a_chat_is_understood_or_named(server: Running) -> None:
    called = {"role": "assistant", "tool_calls": [CHAT_CALL]}
    bodies = (
        (given, {"messages": [called, given, SAID]}) for given in examples(chat.ChatCompletionMessageParam, depth=2)
    )
    assert _answers(server, "/v1/chat/completions", bodies, "messages.") == {}


@pytest.mark.parametrize(
    ("path", "params", "needed", "apart"),
    [
        (
            "/v1/responses",
            response_create_params.ResponseCreateParamsNonStreaming,
            {"input": "x", "tools": [WEATHER]},
            {"input", "tools", "model", "previous_response_id", "tool_choice"},
        ),
        (
            "/v1/messages",
            message_create_params.MessageCreateParamsNonStreaming,
            {"messages": [SAID], "tools": [{"name": "weather", "input_schema": {}}]},
            {"messages", "tools", "model"},
        ),
    ],
)
def test_every_field_works_or_is_named(
    server: Running, path: str, params: Any, needed: dict[str, Any], apart: set[str]
) -> None:
    wrong: dict[str, str] = {}
    for name, kind in fields(params).items():
        if name not in apart:
            bodies = ((f"{name}: {value}", {**needed, name: value}) for value in examples(kind, name, depth=2))
            wrong |= _answers(server, path, bodies, name)
    assert wrong == {}


def test_the_types_are_read_as_they_are() -> None:
    """The walk over them finds what it is for."""
    kinds = {given.get("type") for given in examples(responses.ResponseInputItemParam)}
    assert {"function_call", "compaction", "configuration_update", "additional_tools"} <= kinds
    assert item(list[str]) is str
