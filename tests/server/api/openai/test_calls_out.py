"""Answers with tool calls and reasoning, on a real socket: each row of what clients break on, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.chat.deltas import Delta, ReasoningDelta, ScoredToken, TextDelta, ToolCallDelta
from tests.support.scripted_service import Reply, Running, ScriptedService, running


def _scored(id: int, text: str) -> tuple[ScoredToken, ...]:
    return (ScoredToken(id, text, text.encode(), -0.5),)


CALL: list[Delta] = [
    ToolCallDelta(0, 0, "call_a", "weather"),
    ToolCallDelta(0, 0, arguments='{"city":'),
    ToolCallDelta(0, 0, arguments=' "Paris"}'),
]
SCRIPTS: dict[str, list[Delta]] = {
    "call": CALL,
    "call at once": [ToolCallDelta(0, 0, "call_a", "weather", '{"city": "Paris"}')],
    "two calls": [*CALL, ToolCallDelta(0, 1, "call_b", "time"), ToolCallDelta(0, 1, arguments="{}")],
    "text and call": [TextDelta(0, "Let me"), TextDelta(0, " see."), *CALL],
    "thought": [ReasoningDelta(0, "Hm"), ReasoningDelta(0, "m."), TextDelta(0, "408")],
    "only thought": [ReasoningDelta(0, "Hmm.")],
    "thought and call": [ReasoningDelta(0, "Hmm."), *CALL],
    "nothing": [],
    "scored": [
        ReasoningDelta(0, "Hm", _scored(1, "Hm")),
        TextDelta(0, "Let", _scored(2, "Let")),
        ToolCallDelta(0, 0, "call_a", "f", "", _scored(3, "<call>")),
        ToolCallDelta(0, 0, arguments="{}", tokens=_scored(4, "{}")),
    ],
}
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("weather", "time", "f")]
PARIS = {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
TIME = {"id": "call_b", "type": "function", "function": {"name": "time", "arguments": "{}"}}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedService(scripts=SCRIPTS)) as up:
        yield up


def _ask(server: Running, script: str, **fields: Any) -> Reply:
    fields = {"tools": TOOLS} | fields
    reply = server.chat(messages=[{"role": "user", "content": script}], **fields)
    assert reply.status == 200, reply.body
    return reply


def _chunks(server: Running, script: str, **fields: Any) -> list[Any]:
    *chunks, done = _ask(server, script, stream=True, **fields).events()
    assert done == "[DONE]"
    return chunks


def _deltas(server: Running, script: str, **fields: Any) -> list[Any]:
    return [chunk["choices"][0]["delta"] for chunk in _chunks(server, script, **fields)]


MESSAGES: list[tuple[str, dict[str, Any], str]] = [
    ("call", {"content": None, "tool_calls": [PARIS]}, "tool_calls"),
    ("call at once", {"content": None, "tool_calls": [PARIS]}, "tool_calls"),
    ("two calls", {"content": None, "tool_calls": [PARIS, TIME]}, "tool_calls"),
    ("text and call", {"content": "Let me see.", "tool_calls": [PARIS]}, "tool_calls"),
    ("thought", {"content": "408", "reasoning_content": "Hmm.", "reasoning": "Hmm."}, "stop"),
    ("only thought", {"content": None, "reasoning_content": "Hmm.", "reasoning": "Hmm."}, "stop"),
    ("thought and call",
     {"content": None, "reasoning_content": "Hmm.", "reasoning": "Hmm.", "tool_calls": [PARIS]}, "tool_calls"),
    ("nothing", {"content": ""}, "stop"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "message", "reason"), MESSAGES, ids=[row[0] for row in MESSAGES])
def test_a_whole_answer_holds_calls_and_reasoning_beside_the_content(
    server: Running, script: str, message: dict[str, Any], reason: str
) -> None:
    [choice] = _ask(server, script).json()["choices"]
    assert choice["message"] == {"role": "assistant", "refusal": None, **message}
    assert choice["finish_reason"] == reason


@pytest.mark.parametrize(("script", "message", "reason"), MESSAGES, ids=[row[0] for row in MESSAGES])
def test_a_stream_says_the_same(server: Running, script: str, message: dict[str, Any], reason: str) -> None:
    chunks = _chunks(server, script)
    told: dict[str, Any] = {"content": ""}
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"]
        for key in ("content", "reasoning_content", "reasoning"):
            if delta.get(key):
                told[key] = told.get(key, "") + delta[key]
        for piece in delta.get("tool_calls", []):
            if piece["index"] == len(calls):
                calls.append({"id": piece["id"], "type": piece["type"], "function": dict(piece["function"])})
            else:
                assert set(piece) == {"index", "function"}
                assert set(piece["function"]) == {"arguments"}
                calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    told |= {"tool_calls": calls} if calls else {}
    assert told == {**message, "content": message["content"] or ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + [reason]


def test_a_call_begins_with_index_id_type_and_name_and_goes_on_with_pieces_of_text(server: Running) -> None:
    opening, first, *pieces, last = _deltas(server, "call")
    assert opening == {"role": "assistant", "content": None}
    function = {"name": "weather", "arguments": ""}
    assert first == {"tool_calls": [{"index": 0, "id": "call_a", "type": "function", "function": function}]}
    assert pieces == [
        {"tool_calls": [{"index": 0, "function": {"arguments": text}}]} for text in ('{"city":', ' "Paris"}')
    ]
    assert last == {}


def test_no_delta_holds_two_channels_or_a_null(server: Running) -> None:
    for script in SCRIPTS:
        for delta in _deltas(server, script)[1:]:
            assert len({key.removesuffix("_content") for key in delta} - {""}) <= 1
            assert None not in delta.values()


def test_every_chunk_keeps_what_clients_break_without(server: Running) -> None:
    for script in SCRIPTS:
        for chunk in _chunks(server, script):
            assert {"id", "object", "created", "model", "choices"} <= set(chunk)
            [choice] = chunk["choices"]
            assert set(choice) == {"index", "delta", "logprobs", "finish_reason"}


def test_streams_are_data_lines_and_comments_only(server: Running) -> None:
    body = _ask(server, "two calls", stream=True).body.decode()
    assert {line[:6] for line in body.splitlines() if line and not line.startswith(":")} == {"data: "}


def test_a_stream_begins_with_a_content_unless_there_may_be_calls(server: Running) -> None:
    assert _deltas(server, "thought", tools=[])[0] == {"role": "assistant", "content": ""}
    assert _deltas(server, "thought", tool_choice="none")[0] == {"role": "assistant", "content": ""}
    assert _deltas(server, "thought")[0] == {"role": "assistant", "content": None}


@pytest.mark.parametrize("fields", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}])
def test_reasoning_can_be_left_out_and_is_counted_nevertheless(server: Running, fields: dict[str, Any]) -> None:
    answer = _ask(server, "thought", **fields).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "408", "refusal": None}
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    streamed = _deltas(server, "thought", **fields)
    assert [delta.get("content") for delta in streamed] == [None, "408", None]
    assert not any("reasoning" in key for delta in streamed for key in delta)


def test_reasoning_tokens_are_counted_in_both_modes(server: Running) -> None:
    whole = _ask(server, "thought").json()["usage"]
    assert whole["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert _chunks(server, "thought", stream_options={"include_usage": True})[-1]["usage"] == whole


def test_logprobs_are_those_of_the_content(server: Running) -> None:
    content = _ask(server, "scored", logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["Let"]
    for chunk in _chunks(server, "scored", logprobs=True):
        [choice] = chunk["choices"]
        assert (choice["logprobs"] is not None) == bool(choice["delta"].get("content"))


def test_token_ids_are_those_of_the_whole_answer(server: Running) -> None:
    for fields in ({}, {"include_reasoning": False}):
        whole = _ask(server, "scored", return_token_ids=True, **fields).json()["choices"][0]
        assert (whole["token_ids"], whole["logprobs"]) == ([1, 2, 3, 4], None)
        chunks = _chunks(server, "scored", return_token_ids=True, **fields)
        assert [id for chunk in chunks for id in chunk["choices"][0].get("token_ids", [])] == [1, 2, 3, 4]


LEGACY: dict[str, Any] = {"tools": None, "functions": [{"name": "weather"}]}


def test_the_former_api_gets_its_former_answer(server: Running) -> None:
    [choice] = _ask(server, "call", **LEGACY).json()["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"] == {
        "role": "assistant", "content": None, "refusal": None, "function_call": PARIS["function"],
    }  # fmt: skip
    *chunks, last = _chunks(server, "call", **LEGACY)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[1:]]
    assert deltas[0] == {"function_call": {"name": "weather", "arguments": ""}}
    assert deltas[1:] == [{"function_call": {"arguments": text}} for text in ('{"city":', ' "Paris"}')]
    assert last["choices"][0]["finish_reason"] == "function_call"


def test_usage_is_in_every_whole_answer(server: Running) -> None:
    for script in SCRIPTS:
        usage = _ask(server, script).json()["usage"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": 2}
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
