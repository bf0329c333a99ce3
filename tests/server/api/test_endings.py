"""Every way in which an answer ends, as each dialect says it: whole and streamed alike, with usage to the token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from server.chat.deltas import Event, Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from server.errors import EngineFailed
from tests.support.running import Running as Process
from tests.support.running import serving_script
from tests.support.scripted_events import ScriptedEvents
from tests.support.scripted_service import Running, running
from tests.support.tiny_model import write_tiny_model

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
SAID: list[Any] = [{"role": "user", "content": "hi"}]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"place": {"type": "string"}}}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": SAID, "tools": [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]},
    TEXT: {"prompt": "hi"},
    RESPONSES: {"input": "hi", "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA}]},
    MESSAGES: {"messages": SAID, "max_tokens": 99, "tools": [{"name": "weather", "input_schema": SCHEMA}]},
}
STREAM: dict[str, dict[str, Any]] = {
    CHAT: {"stream": True, "stream_options": {"include_usage": True}},
    TEXT: {"stream": True, "stream_options": {"include_usage": True}},
    RESPONSES: {"stream": True},
    MESSAGES: {"stream": True},
}


class Ending(NamedTuple):
    """`events`, and what it is in each dialect; Messages with the sequence that ended it."""

    events: tuple[Event, ...]
    chat: str
    responses: tuple[str, str | None]
    messages: tuple[str, str | None]
    text: str | None = None


CALL = (ToolCallDelta(0, 0, "call_a", "weather"), ToolCallDelta(0, 0, arguments='{"place": "Paris"}'))
DONE, CUT = ("completed", None), ("incomplete", "max_output_tokens")
ENDINGS = {
    "the model is done": Ending(
        (TextDelta(0, "Paris."), Finish(0, "stop", 2), Usage(30, 2, 12)), "stop", DONE, ("end_turn", None), "stop"
    ),
    "nothing is said": Ending((Finish(0, "stop", 0), Usage(30, 0, 12)), "stop", DONE, ("end_turn", None), "stop"),
    "as long as it may be": Ending(
        (TextDelta(0, "Par"), Finish(0, "length", 1), Usage(30, 1, 12)), "length", CUT, ("max_tokens", None), "length"
    ),
    "a stop string": Ending(
        (TextDelta(0, "Paris"), Finish(0, "stop", 3, "END"), Usage(30, 3, 12)),
        "stop", DONE, ("stop_sequence", "END"), "stop",
    ),
    "a call": Ending(
        (TextDelta(0, "I look."), *CALL, Finish(0, "tool_calls", 9), Usage(30, 9, 12)),
        "tool_calls", DONE, ("tool_use", None),
    ),
    "a stop string behind a call": Ending(
        (*CALL, Finish(0, "tool_calls", 9, "END"), Usage(30, 9, 12)), "tool_calls", DONE, ("tool_use", None)
    ),
    "cut inside a call": Ending(
        (CALL[0], ToolCallDelta(0, 0, arguments='{"pla'), Finish(0, "length", 5), Usage(30, 5, 12)),
        "length", CUT, ("max_tokens", None),
    ),
    "cut behind a call": Ending((*CALL, Finish(0, "length", 9), Usage(30, 9, 12)), "length", CUT, ("max_tokens", None)),
    "cut inside a thought": Ending(
        (ReasoningDelta(0, "Hm"), Finish(0, "length", 3), Usage(30, 3, 12, 3)), "length", CUT, ("max_tokens", None)
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedEvents()) as up:
        yield up


def answered(server: Running, path: str, *events: Event | Exception, stream: bool) -> Any:
    """The whole answer, or the list of a stream's events."""
    assert isinstance(server.service, ScriptedEvents)
    server.service.says(*events)
    reply = server.send("POST", path, BODIES[path] | (STREAM[path] if stream else {}))
    assert reply.status == 200, reply.body
    return [event for event in reply.events() if event != "[DONE]"] if stream else reply.json()


def chat_ending(answer: Any) -> tuple[Any, Any]:
    """The reason and the usage; of a stream, that no chunk but one has a reason."""
    if isinstance(answer, dict):
        return answer["choices"][0]["finish_reason"], answer["usage"]
    *chunks, last = answer
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert last["choices"] == [] and not any(reasons[:-1])
    return reasons[-1], last["usage"]


def response_ending(answer: Any) -> tuple[Any, Any]:
    if isinstance(answer, list):
        kind, answer = answer[-1]["type"], answer[-1]["response"]
        assert kind == f"response.{answer['status']}"
    why = answer["incomplete_details"]
    return (answer["status"], why and why["reason"]), answer["usage"]


def message_ending(answer: Any) -> tuple[Any, Any]:
    if isinstance(answer, list):
        [delta] = [event for event in answer if event["type"] == "message_delta"]
        assert answer[-1] == {"type": "message_stop"}
        answer = delta["delta"] | {"usage": delta["usage"]}
    return (answer["stop_reason"], answer["stop_sequence"]), answer["usage"]


def usage_of(ending: Ending) -> Usage:
    usage = ending.events[-1]
    assert isinstance(usage, Usage)
    return usage


def openai_usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ENDINGS)
def test_of_a_chat(server: Running, name: str, stream: bool) -> None:
    ending = ENDINGS[name]
    assert chat_ending(answered(server, CHAT, *ending.events, stream=stream)) == (
        ending.chat, openai_usage(usage_of(ending)),
    )  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", [name for name, ending in ENDINGS.items() if ending.text])
def test_of_a_text(server: Running, name: str, stream: bool) -> None:
    ending = ENDINGS[name]
    assert chat_ending(answered(server, TEXT, *ending.events, stream=stream)) == (
        ending.text, openai_usage(usage_of(ending)),
    )  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ENDINGS)
def test_of_a_response(server: Running, name: str, stream: bool) -> None:
    ending, usage = ENDINGS[name], usage_of(ENDINGS[name])
    assert response_ending(answered(server, RESPONSES, *ending.events, stream=stream)) == (
        ending.responses,
        {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ENDINGS)
def test_of_a_message(server: Running, name: str, stream: bool) -> None:
    ending, usage = ENDINGS[name], usage_of(ENDINGS[name])
    assert message_ending(answered(server, MESSAGES, *ending.events, stream=stream)) == (
        ending.messages,
        {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        },
    )


def test_what_was_called_before_a_cut_is_whole_and_what_was_cut_is_marked(server: Running) -> None:
    cut = ENDINGS["cut inside a call"].events
    [item] = answered(server, RESPONSES, *cut, stream=False)["output"]
    assert (item["status"], item["arguments"]) == ("incomplete", '{"pla')
    [block] = answered(server, MESSAGES, *cut, stream=False)["content"]
    assert block["input"] == {"INVALID_JSON": '{"pla'}
    [call] = answered(server, CHAT, *cut, stream=False)["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"pla'
    events = answered(server, MESSAGES, *cut, stream=True)
    assert [event["type"] for event in events if "block" in event["type"]] == [
        "content_block_start", "content_block_delta", "content_block_stop",
    ]  # fmt: skip


FAILED = EngineFailed("The engine ended.")


@pytest.mark.parametrize("path", BODIES)
def test_an_answer_that_fails_midway_is_an_error_in_the_words_of_its_dialect(server: Running, path: str) -> None:
    *_, last = answered(server, path, TextDelta(0, "Par"), FAILED, stream=True)
    match path:
        case "/v1/responses":
            assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
            assert last["response"]["error"] == {"code": "server_error", "message": "The engine ended."}
        case "/v1/messages":
            assert last == {"type": "error", "error": {"type": "api_error", "message": "The engine ended."}}
        case _:
            assert (last["error"]["message"], last["error"]["code"]) == ("The engine ended.", "engine_failed")
    assert isinstance(server.service, ScriptedEvents)
    server.service.says(TextDelta(0, "Par"), FAILED)
    whole = server.send("POST", path, BODIES[path])
    assert whole.status == 500
    assert whole.json()["error"]["message"] == "The engine ended."


# ---- on a real server, whose tokens can be counted


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("endings")
    with serving_script(folder, write_tiny_model(folder / "model")) as up:
        yield up


LIMIT = {RESPONSES: "max_output_tokens"}
ENDING_OF = {CHAT: chat_ending, TEXT: chat_ending, RESPONSES: response_ending, MESSAGES: message_ending}
OUTPUT = {CHAT: "completion_tokens", TEXT: "completion_tokens", RESPONSES: "output_tokens", MESSAGES: "output_tokens"}


def made(process: Process, path: str, **fields: Any) -> tuple[Any, int]:
    body = {name: value for name, value in BODIES[path].items() if name != "tools"} | fields
    status, answer = process.post(path, body)
    assert status == 200, answer
    ending, usage = ENDING_OF[path](answer)
    return ending, usage[OUTPUT[path]]


ENDS_CUT = {CHAT: "length", TEXT: "length", RESPONSES: CUT, MESSAGES: ("max_tokens", None)}


# 0 reads the prompt.
@pytest.mark.parametrize("most", [7, 0])
@pytest.mark.parametrize("path", BODIES)
def test_as_many_tokens_are_counted_as_were_made(process: Process, path: str, most: int) -> None:
    assert made(process, path, **{LIMIT.get(path, "max_tokens"): most}) == (ENDS_CUT[path], most)


def test_no_tokens_say_nothing_in_any_dialect(process: Process) -> None:
    """With tools and logprobs too; `n_predict` is llama-server's name for it."""
    choice = process.post(CHAT, BODIES[CHAT] | {"n_predict": 0, "logprobs": True})[1]["choices"][0]
    assert (choice["message"]["content"], choice["logprobs"]["content"]) == ("", [])
    assert "tool_calls" not in choice["message"]
    assert process.post(TEXT, BODIES[TEXT] | {"max_tokens": 0})[1]["choices"][0]["text"] == ""
    assert process.post(RESPONSES, BODIES[RESPONSES] | {"max_output_tokens": 0})[1]["output"] == []
    assert process.post(MESSAGES, BODIES[MESSAGES] | {"max_tokens": 0})[1]["content"] == []


@pytest.mark.parametrize("path", BODIES)
def test_an_answer_that_ends_at_a_stop_string_counts_what_was_made_until_then(process: Process, path: str) -> None:
    _, whole = process.post(TEXT, {"prompt": "hi", "max_tokens": 30})
    text = whole["choices"][0]["text"]
    stop = text[9:12]
    ends = {CHAT: "stop", TEXT: "stop", RESPONSES: DONE, MESSAGES: ("stop_sequence", stop)}
    name = "stop_sequences" if path == MESSAGES else "stop"
    limit = {LIMIT.get(path, "max_tokens"): 30}
    ending, count = made(process, path, **{name: [stop]}, **limit)
    assert ending == ends[path]
    # Each of these tokens is a character or more: the one that completes the stop string is the last that counts.
    assert 0 < count <= text.index(stop) + len(stop)


BAD: dict[str, Any] = {"type": "object", "properties": {"a": {"$ref": "#/$defs/nowhere"}}}
HELD: dict[str, dict[str, Any]] = {
    CHAT: {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": BAD, "strict": True}}},
    TEXT: {"guided_json": BAD},
    RESPONSES: {"text": {"format": {"type": "json_schema", "name": "a", "schema": BAD, "strict": True}}},
    MESSAGES: {"output_config": {"format": {"type": "json_schema", "schema": BAD}}},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
def test_a_schema_that_no_answer_can_be_held_to_is_refused_before_the_first_token(
    process: Process, path: str, stream: bool
) -> None:
    status, answer = process.post(path, BODIES[path] | HELD[path] | {"stream": stream})
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert "nowhere" in answer["error"]["message"]
