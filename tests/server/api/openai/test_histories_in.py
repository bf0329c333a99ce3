"""Messages with calls, results, reasoning and images, on a real socket, in every shape that clients send them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.chat.conversation import Conversation, GenerationRequest
from server.chat.parts import Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from server.settings.types import LimitSettings, Settings
from tests.support.scripted_service import Running, ScriptedService, running


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


def _message(server: Running, *messages: dict[str, Any]) -> Message:
    """The last of `messages`, as it arrives."""
    return _conversation(server, messages=list(messages)).messages[-1]


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
ASKED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
PART = ToolCallPart("c1", "weather", '{"city": "Paris"}')

ASSISTANTS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    (ASKED, (PART,)),
    ({"role": "assistant", "tool_calls": [CALL]}, (PART,)),
    ({"role": "assistant", "content": "", "tool_calls": [CALL]}, (TextPart(""), PART)),
    ({"role": "assistant", "content": "Hm", "reasoning_content": "Why?", "tool_calls": [CALL]},
     (ReasoningPart("Why?"), TextPart("Hm"), PART)),
    ({"role": "assistant", "content": "a", "reasoning": "b"}, (ReasoningPart("b"), TextPart("a"))),
    ({"role": "assistant", "content": "a", "reasoning_content": "b", "reasoning": "b"},
     (ReasoningPart("b"), TextPart("a"))),
    ({"role": "assistant", "content": "a", "thinking": "b"}, (ReasoningPart("b"), TextPart("a"))),
    ({"role": "assistant", "content": [{"type": "thinking", "thinking": "b"}, {"type": "text", "text": "a"}]},
     (ReasoningPart("b"), TextPart("a"))),
    ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": "é"}}}]},
     (ToolCallPart("call_0_0", "f", '{"a": "é"}'),)),
    ({"role": "assistant", "tool_calls": [{"id": "", "function": {"name": "f", "arguments": ""}}]},
     (ToolCallPart("call_0_0", "f", "{}"),)),
    ({"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "f"}}]}, (ToolCallPart("x", "f", "{}"),)),
    ({"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "{oops"}}]},
     (ToolCallPart("x", "f", "{oops"),)),
    ({"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
     (ToolCallPart("call_0", "f", "{}"),)),
    ({"role": "assistant", "content": "a", "prefix": True}, (TextPart("a"),)),
]  # fmt: skip


@pytest.mark.parametrize(("message", "parts"), ASSISTANTS, ids=range(len(ASSISTANTS)))
def test_an_assistants_message_is_read_in_every_shape(
    server: Running, message: dict[str, Any], parts: tuple[Any, ...]
) -> None:
    reply = server.chat(messages=[message])
    assert "x-configi-ignored" not in reply.headers
    assert _message(server, message) == Message("assistant", parts)


TEXTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
RESULTS: list[tuple[list[dict[str, Any]], ToolResultPart]] = [
    ([ASKED, {"role": "tool", "tool_call_id": "c1", "content": "18"}], ToolResultPart("c1", "18", "weather")),
    ([ASKED, {"role": "tool", "tool_call_id": "c1", "content": TEXTS}], ToolResultPart("c1", "ab", "weather")),
    ([ASKED, {"role": "tool", "tool_call_id": "c1", "content": ""}], ToolResultPart("c1", "", "weather")),
    ([ASKED, {"role": "tool", "tool_call_id": "c1"}], ToolResultPart("c1", "", "weather")),
    ([ASKED, {"role": "tool", "tool_call_id": "c1", "content": "x" * 500_000}],
     ToolResultPart("c1", "x" * 500_000, "weather")),
    ([ASKED, {"role": "tool", "content": "18"}], ToolResultPart("c1", "18", "weather")),
    ([ASKED, {"role": "tool", "tool_call_id": "c1", "name": "mine", "content": "18"}],
     ToolResultPart("c1", "18", "mine")),
    # To no call.
    ([{"role": "tool", "tool_call_id": "zz", "content": "18"}], ToolResultPart("zz", "18")),
    ([{"role": "tool", "content": "18"}], ToolResultPart("", "18")),
    ([{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
      {"role": "function", "name": "f", "content": "18"}], ToolResultPart("call_0", "18", "f")),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "part"), RESULTS, ids=range(len(RESULTS)))
def test_a_result_knows_its_call_and_its_tool(
    server: Running, messages: list[dict[str, Any]], part: ToolResultPart
) -> None:
    assert _message(server, *messages) == Message("tool", (part,))


def test_results_without_ids_answer_the_calls_in_their_order(server: Running) -> None:
    calls = [{**CALL, "id": f"c{i}"} for i in range(3)]
    results = [{"role": "tool", "content": str(i)} for i in range(3)]
    messages = _conversation(server, messages=[{"role": "assistant", "tool_calls": calls}, *results]).messages
    assert [message.parts[0] for message in messages[1:]] == [
        ToolResultPart(f"c{i}", str(i), "weather") for i in range(3)
    ]


def test_a_last_message_that_ends_in_calls_is_not_continued(server: Running) -> None:
    assert not _conversation(server, messages=[ASKED]).continues
    assert server.chat(messages=[ASKED], continue_final_message=True).status == 400
    assert _conversation(server, messages=[{"role": "assistant", "content": "a"}]).continues


BAD_MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"role": "assistant", "tool_calls": {"a": 1}}, "tool_calls"),
    ({"role": "assistant", "tool_calls": [5]}, "tool_calls.0"),
    ({"role": "assistant", "tool_calls": [{"id": 5, "function": {"name": "f"}}]}, "tool_calls.0.id"),
    ({"role": "assistant", "tool_calls": [{"type": "custom", "custom": {}}]}, "tool_calls.0.type"),
    ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "tool_calls.0.function"),
    ({"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": ""}}]}, "tool_calls.0.function.name"),
    ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]},
     "tool_calls.0.function.arguments"),
    ({"role": "assistant", "function_call": {"name": 5}}, "function_call.name"),
    ({"role": "assistant", "content": "a", "reasoning": {"a": 1}}, "reasoning"),
    ({"role": "tool", "tool_call_id": 5, "content": "a"}, "tool_call_id"),
    ({"role": "tool", "name": [], "content": "a"}, "name"),
    ({"role": "user", "content": [{"type": "thinking", "thinking": "a"}]}, "content.0.type"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "place"), BAD_MESSAGES, ids=range(len(BAD_MESSAGES)))
def test_a_bad_call_or_result_is_a_400_that_names_the_place(
    server: Running, message: dict[str, Any], place: str
) -> None:
    reply = server.chat(messages=[message])
    assert (reply.status, reply.json()["error"]["param"]) == (400, f"messages.0.{place}"), reply.body


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def test_images_are_refused_by_name_with_the_setting_that_lets_them_pass(server: Running) -> None:
    for message in ({"role": "user", "content": [IMAGE]}, {"role": "user", "content": "a", "images": ["AAAA"]}):
        error = server.chat(messages=[message]).json()["error"]
        assert error["code"] == "unsupported_field"
        assert 'limits.images = "omit"' in error["message"]


def test_images_are_left_out_visibly_where_the_settings_say_so() -> None:
    with running(ScriptedService(Settings(limits=LimitSettings(images="omit")))) as up:
        content = [{"type": "text", "text": "Look: "}, IMAGE, {"type": "text", "text": "!"}]
        assert _message(up, {"role": "user", "content": content}) == Message.plain("user", "Look: [image omitted]!")
        assert _message(up, {"role": "user", "content": "a", "images": ["AAAA"]}).text == "a[image omitted]"
        result = {"role": "tool", "tool_call_id": "c1", "content": [IMAGE]}
        assert _message(up, ASKED, result).text == "[image omitted]"
        assert up.chat(messages=[{"role": "user", "content": [{"type": "input_audio"}]}]).status == 400
