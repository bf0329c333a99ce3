"""What a stream waits for, and how far its prompt is read, as data: in every dialect, and through its SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic
from openai import OpenAI

from server.chat.deltas import Event, ModelPending, PrefillProgress
from server.errors import ModelUnavailable
from tests.support.running import serving_script
from tests.support.scripted_events import PLAIN, ScriptedEvents
from tests.support.scripted_service import MODEL, Running, running
from tests.support.streams import stream
from tests.support.tiny_model import write_tiny_model

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
SAID: list[Any] = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": SAID},
    TEXT: {"prompt": "hi"},
    RESPONSES: {"input": "hi"},
    MESSAGES: {"messages": SAID, "max_tokens": 9},
}
FETCHING = ModelPending(
    "fetching: 3 of 11 GB", "fetching", MODEL, None, 3 * 10**9, 11 * 10**9, rate=5e7, seconds_left=160.04
)
SCRIPT: tuple[Event, ...] = (
    ModelPending("queued: place 2", "queued", MODEL, 2),
    PrefillProgress(12, 30, 12, 0.0, 14),
    PrefillProgress(30, 30, 12, 0.25, 14),
    *PLAIN,
)
TOLD: list[dict[str, Any]] = [
    {
        "total": 0, "cache": 0, "processed": 0, "time_ms": 0, "state": "fetching", "text": "fetching: 3 of 11 GB",
        "bytes_done": 3 * 10**9, "bytes_total": 11 * 10**9, "bytes_per_second": 50_000_000, "seconds_left": 160.0,
    },
    {
        "total": 30, "cache": 0, "processed": 0, "time_ms": 0, "state": "queued", "text": "queued: place 2",
        "queue_place": 2,
    },
    {"total": 30, "cache": 12, "processed": 12, "time_ms": 0, "state": "prefill", "diverged_at": 14},
    {"total": 30, "cache": 12, "processed": 30, "time_ms": 250, "state": "prefill", "diverged_at": 14},
]  # fmt: skip


@pytest.fixture(scope="module")
def up() -> Iterator[Running]:
    with running(ScriptedEvents(script=SCRIPT, before=(FETCHING,))) as server:
        yield server


@pytest.fixture
def server(up: Running) -> Running:
    assert isinstance(up.service, ScriptedEvents)
    up.service.script, up.service.before = SCRIPT, (FETCHING,)
    return up


@pytest.fixture
def openai(up: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{up.url}/v1", api_key="any", max_retries=0, timeout=20) as client:
        yield client


def events(server: Running, path: str, **fields: Any) -> list[Any]:
    reply = server.send("POST", path, BODIES[path] | {"stream": True} | fields)
    assert reply.status == 200, reply.body
    return [event for event in reply.events() if event != "[DONE]"]


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_that_asks_for_it_is_told_every_state_as_data(server: Running, path: str) -> None:
    told = [
        event["prompt_progress"] for event in events(server, path, return_progress=True) if "prompt_progress" in event
    ]
    assert told == TOLD


@pytest.mark.parametrize("path", BODIES)
def test_others_are_told_in_what_their_clients_skip(server: Running, path: str) -> None:
    reply = server.send("POST", path, BODIES[path] | {"stream": True, "return_progress": False})
    assert b"prompt_progress" not in reply.body
    if path == MESSAGES:
        assert reply.body.count(b'data: {"type":"ping"}') == 4
    else:
        comments = [line for line in reply.body.decode().splitlines() if line.startswith(":")]
        assert comments == [
            ": fetching: 3 of 11 GB", ": queued: place 2", ": prompt 12 of 30 tokens", ": prompt 30 of 30 tokens",
        ]  # fmt: skip


@pytest.mark.parametrize("path", BODIES)
def test_an_answer_that_is_no_stream_has_none(server: Running, path: str) -> None:
    reply = server.send("POST", path, BODIES[path] | {"return_progress": True})
    assert reply.status == 200
    assert b"prompt_progress" not in reply.body


def test_a_chunk_of_progress_is_one_that_every_client_can_read(server: Running) -> None:
    """With a choice, an empty delta, the model's name, and the role once, ahead of everything."""
    chunks = events(server, CHAT, return_progress=True)
    assert all(chunk["model"] == MODEL and chunk["id"] == chunks[0]["id"] for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [{"role": "assistant", "content": ""}, {}, {}, {}, {}, {"content": "Paris."}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 6 + ["stop"]


def test_ids_of_the_prompt_come_when_there_are_any(server: Running) -> None:
    chunks = events(server, CHAT, return_progress=True, return_token_ids=True)
    assert [index for index, chunk in enumerate(chunks) if "prompt_token_ids" in chunk] == [2]


def test_the_openai_sdk_reads_a_chat_with_progress(server: Running, openai: OpenAI) -> None:
    extra = {"return_progress": True}
    plain = openai.chat.completions.create(model=MODEL, messages=SAID, stream=True, extra_body=extra)
    progress = [
        chunk.model_extra["prompt_progress"] for chunk in plain if "prompt_progress" in (chunk.model_extra or {})
    ]
    assert progress == TOLD
    with openai.chat.completions.stream(model=MODEL, messages=SAID, extra_body=extra) as helped:
        final = helped.get_final_completion()
    assert (final.choices[0].message.role, final.choices[0].message.content) == ("assistant", "Paris.")


def test_the_openai_sdk_reads_responses_with_progress(server: Running, openai: OpenAI) -> None:
    extra = {"return_progress": True}
    with openai.responses.create(model=MODEL, input="hi", stream=True, extra_body=extra) as told:
        seen = list(told)
    assert [event.type.removeprefix("response.") for event in seen[:6]] == [
        "created", "queued", "in_progress", "in_progress", "in_progress", "in_progress",
    ]  # fmt: skip
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert [event.response.status for event in seen[:3]] == ["queued", "queued", "in_progress"]
    progress = [getattr(event, "prompt_progress", None) for event in seen]
    assert [state for state in progress if state is not None] == TOLD
    with openai.responses.stream(model=MODEL, input="hi", extra_body=extra) as helped:
        assert helped.get_final_response().output_text == "Paris."


def test_a_response_that_fails_before_it_began_is_still_read_by_the_sdk(server: Running, openai: OpenAI) -> None:
    assert isinstance(server.service, ScriptedEvents)
    server.service.before = (FETCHING, ModelUnavailable("The model is gone."))
    with openai.responses.create(model=MODEL, input="hi", stream=True) as told:
        kinds = [event.type for event in told]
    assert kinds[-1] == "response.failed"
    assert kinds[0] == "response.created"


def test_the_anthropic_sdk_reads_messages_with_progress(server: Running) -> None:
    with (
        Anthropic(base_url=server.url, api_key="any", max_retries=0, timeout=20) as client,
        client.messages.stream(
            model=MODEL, max_tokens=9, messages=SAID, extra_body={"return_progress": True}
        ) as helped,
    ):
        final = helped.get_final_message()
    assert [block.to_dict() for block in final.content] == [{"type": "text", "text": "Paris."}]
    assert {
        event["type"] for event in events(server, MESSAGES, return_progress=True) if "prompt_progress" in event
    } == {"ping"}


def states(lines: Iterator[Any]) -> Iterator[dict[str, Any]]:
    return (event["prompt_progress"] for event in lines if event != "[DONE]" and "prompt_progress" in event)


def test_a_stream_that_waits_for_a_slot_knows_its_place_until_it_has_one(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    settings = {"max_concurrent": 1}
    with (
        serving_script(tmp_path, model, ["--interval", "0.01"], engine=settings) as server,
        stream(server) as first,
    ):
        first.text()
        with stream(server, return_progress=True) as second:
            of_second = states(second.events())
            waits = next(of_second)
            assert (waits["state"], waits["queue_place"], waits["processed"]) == ("queued", 1, 0)
            assert waits["total"] > 0
            with stream(server, return_progress=True, max_tokens=2) as third:
                of_third = states(third.events())
                assert next(of_third)["queue_place"] == 2
                first.leave()
                assert next(of_second)["state"] == "prefill"
                assert next(of_third)["queue_place"] == 1
                second.leave()
                assert [state["state"] for state in of_third] == ["prefill"]


def test_a_stream_that_the_engine_has_no_room_for_is_told_so_though_there_are_slots(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    with serving_script(tmp_path, model, ["--interval", "0.01", "--slots", "1"]) as server, stream(server) as first:
        first.text()
        with stream(server, return_progress=True, max_tokens=2) as second:
            told = states(second.events())
            assert next(told)["queue_place"] == 1
            first.leave()
            assert [state["state"] for state in told] == ["prefill"]


def test_a_stream_that_waits_for_its_model_is_told_so_as_data(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    with (
        serving_script(tmp_path, model, ["--load-seconds", "0.3"]) as server,
        stream(server, return_progress=True, max_tokens=2) as waiting,
    ):
        told = list(waiting.events())
    seen = list(states(iter(told)))
    assert [seen[0]["state"], seen[-1]["state"]] == ["loading", "prefill"]
    assert seen[0]["text"].startswith("loading: ")
    assert [30, 100] in [[state.get("bytes_done"), state.get("bytes_total")] for state in seen]
    assert seen[-1]["processed"] == seen[-1]["total"]
    assert json.dumps(told[0]["choices"][0]["delta"]) == '{"role": "assistant", "content": ""}'
