"""Streams on a real socket: their bytes, their errors, and what happens when the reader leaves or stalls."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sse_starlette.sse import AppStatus

from server.models.status import ModelStatus
from server.settings.types import ServerSettings, Settings
from tests.support.scripted_service import MODEL, REPLY, Running, ScriptedService, running

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    settings = Settings(server=ServerSettings(sse_write_timeout_s=0.3, sse_ping_s=0.05))
    with running(ScriptedService(settings)) as up:
        yield up


@pytest.fixture
def server(shared: Running) -> Running:
    shared.service.begun.clear()
    shared.service.go_on.clear()
    return shared


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _request(path: str, script: str, **fields: object) -> dict[str, object]:
    return {"messages": _user(script), **fields} if "chat" in path else {"prompt": script, **fields}


def _read(connection: socket.socket, mark: bytes, times: int = 1) -> bytes:
    seen = b""
    while seen.count(mark) < times:
        piece = connection.recv(4096)
        assert piece, f"the stream ended before {mark!r}"
        seen += piece
    return seen


BOTH = pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])


def test_the_bytes_of_a_chat_stream_are_the_golden_ones(server: Running) -> None:
    """UPDATE_GOLDEN=1 writes the file anew; review the difference."""
    reply = server.chat(
        messages=_user("wait"),
        stream=True,
        stream_options={"include_usage": True},
        n=2,
        max_tokens=2,
        logprobs=True,
        top_logprobs=1,
    )
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-store"
    body = re.sub(rb"chatcmpl-[0-9a-f]{32}", b"chatcmpl-ID", reply.body)
    body = re.sub(rb'"created":\d+', b'"created":0', body)
    golden = GOLDEN / "chat_stream.sse"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_bytes(body)
    assert body == golden.read_bytes()


def test_every_chunk_of_a_chat_stream_carries_what_clients_break_without(server: Running) -> None:
    *chunks, done = server.chat(stream=True).events()
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    for chunk in chunks:
        assert "usage" not in chunk
        assert [set(choice) for choice in chunk["choices"]] == [{"index", "delta", "logprobs", "finish_reason"}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(REPLY) + 1) + ["stop"]


def test_usage_comes_last_and_only_when_asked_for(server: Running) -> None:
    *chunks, last, done = server.chat(stream=True, stream_options={"include_usage": True}).events()
    assert done == "[DONE]"
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == server.chat().json()["usage"]
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert last["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


@pytest.mark.parametrize("fields", [{}, {"logprobs": True, "top_logprobs": 2}, {"n": 3, "max_tokens": 2}])
def test_a_chat_stream_and_the_whole_answer_agree(server: Running, fields: dict[str, Any]) -> None:
    whole = server.chat(**fields).json()["choices"]
    *chunks, _ = server.chat(stream=True, **fields).events()
    for choice in whole:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert "".join(part["delta"].get("content", "") for part in parts) == choice["message"]["content"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [choice["finish_reason"]]
        logprobs = [entry for part in parts if part["logprobs"] for entry in part["logprobs"]["content"]]
        assert logprobs == (choice["logprobs"]["content"] if choice["logprobs"] else [])


COMPLETIONS: list[dict[str, Any]] = [
    {},
    {"echo": True},
    {"logprobs": 2},
    {"echo": True, "logprobs": 0, "n": 2},
    {"prompt": ["Hello", "again"], "n": 2, "echo": True, "logprobs": 1, "max_tokens": 3},
    {"prompt": [[72, 105], [72]], "max_tokens": 1},
]


@pytest.mark.parametrize("fields", COMPLETIONS)
def test_a_completion_stream_and_the_whole_answer_agree(server: Running, fields: dict[str, Any]) -> None:
    whole = server.complete(**fields).json()
    stream = server.complete(stream=True, stream_options={"include_usage": True}, **fields)
    *chunks, last, _ = stream.events()
    assert last["usage"] == whole["usage"]
    assert [choice["index"] for choice in whole["choices"]] == list(range(len(whole["choices"])))
    for choice in whole["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [choice["finish_reason"]]
        streamed = [part["logprobs"] for part in parts if part["logprobs"]]
        if choice["logprobs"] is None:
            assert not streamed
        else:
            for key, values in choice["logprobs"].items():
                assert [value for part in streamed for value in part[key]] == values


def test_echo_with_logprobs_scores_the_prompt_and_its_first_token_has_none(server: Running) -> None:
    choice = server.complete(echo=True, logprobs=1, max_tokens=1).json()["choices"][0]
    assert choice["text"] == "HelloParis"
    assert choice["logprobs"] == {
        "tokens": ["He", "llo", "Paris"],
        "token_logprobs": [None, -1.5, -0.5],
        "top_logprobs": [None, {"llo": -1.5}, {"Paris": -0.5}],
        "text_offset": [0, 2, 5],
    }


def test_a_waiting_stream_tells_its_state_in_one_comment_line(server: Running) -> None:
    body = server.chat(messages=_user("wait"), stream=True).body
    assert body.startswith(b": loading data: weights\n\ndata: {")


@BOTH
@pytest.mark.parametrize(
    ("script", "code"), [("fail late", "engine_failed"), ("crash", None), ("stop short", "engine_failed")]
)
def test_an_error_after_the_first_byte_is_an_event_before_done(
    server: Running, path: str, script: str, code: str | None
) -> None:
    reply = server.send("POST", path, _request(path, script, stream=True))
    assert reply.status == 200
    *_, error, done = reply.events()
    assert done == "[DONE]"
    assert error["error"]["code"] == code
    assert b"secret" not in reply.body


@BOTH
def test_an_error_before_the_first_event_of_a_stream_is_an_http_error(server: Running, path: str) -> None:
    reply = server.send("POST", path, _request(path, "fail early", stream=True))
    assert (reply.status, reply.json()["error"]["param"]) == (400, "messages")


@BOTH
def test_an_incomplete_whole_answer_is_an_error(server: Running, path: str) -> None:
    assert server.send("POST", path, _request(path, "stop short")).status == 500


@BOTH
@pytest.mark.parametrize("script", ["hang before", "hang", "flood"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_generation(server: Running, path: str, script: str, stream: bool) -> None:
    connection = server.open(path, _request(path, script, stream=stream))
    assert server.service.begun.wait(5)
    connection.close()
    # None of these scripts ends by itself.
    assert server.service.idle.wait(5)
    assert server.chat().status == 200


def test_a_client_that_leaves_ends_the_generations_of_all_its_prompts(server: Running) -> None:
    for stream in (False, True):
        server.service.begun.clear()
        connection = server.open("/v1/completions", {"prompt": ["hang", "hang"], "stream": stream})
        assert server.service.begun.wait(5)
        connection.close()
        assert server.service.idle.wait(5)


def test_a_client_that_leaves_during_its_upload_leaves_no_trace(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    connection = server.open("/v1/chat/completions", {})
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    assert connection.recv(100).startswith(b"HTTP/1.1 400")
    connection.close()
    assert server.chat().status == 200
    assert not caplog.records


def test_a_reader_that_stalls_ends_its_generation_without_a_traceback(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with server.open("/v1/chat/completions", _request("chat", "flood", stream=True)):
        assert server.service.begun.wait(5)
        assert server.chat().status == 200
        # More than the socket buffers hold, then the write timeout.
        assert server.service.idle.wait(15)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert any("stalled" in record.message for record in warnings)
    assert not any(record.exc_info for record in warnings)


def test_a_silent_stream_is_kept_alive_by_comments(server: Running) -> None:
    with server.open("/v1/chat/completions", _request("chat", "pause", stream=True)) as connection:
        _read(connection, b": ping\n\n", times=2)
        server.service.go_on.set()
        assert b'"finish_reason":"stop"' in _read(connection, b"[DONE]")


def test_shutdown_does_not_cut_a_stream(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service ends streams with an error event after the grace time; sse-starlette alone would cut them at once."""
    monkeypatch.setattr(AppStatus, "should_exit", True)
    with server.open("/v1/chat/completions", _request("chat", "pause", stream=True)) as connection:
        _read(connection, b": ping\n\n")
        server.service.go_on.set()
        assert b'"finish_reason":"stop"' in _read(connection, b"[DONE]")


def test_health_is_503_when_the_server_makes_no_progress(server: Running) -> None:
    assert server.send("GET", "/health").json() == {"status": "ok"}
    server.service.alive = False
    try:
        reply = server.send("GET", "/health")
    finally:
        server.service.alive = True
    assert (reply.status, set(reply.json())) == (503, {"error"})


def test_ready_tells_the_state_and_progress_until_the_model_is_resident(server: Running) -> None:
    assert server.send("GET", "/ready").status == 200
    good = server.service.state
    try:
        server.service.state = ModelStatus(MODEL, "fetching", "fetching 1 of 2 GB", 1, 201, rate=10.0)
        fetching = server.send("GET", "/ready")
        server.service.state = ModelStatus(MODEL, "failed", "out of memory")
        failed = server.send("GET", "/ready")
    finally:
        server.service.state = good
    body = fetching.json()
    assert body.pop("error") == {
        "message": "fetching 1 of 2 GB",
        "type": "overloaded_error",
        "param": None,
        "code": "model_loading",
    }
    assert body == {
        "model": MODEL, "state": "fetching", "text": "fetching 1 of 2 GB", "done": 1, "total": 201,
        "bytes_per_second": 10, "seconds_left": 20.0,
    }  # fmt: skip
    assert (fetching.status, fetching.headers["retry-after"]) == (503, "5")
    assert (failed.status, failed.json()["error"]["code"]) == (503, "model_unavailable")


def test_metrics_are_prometheus_text(server: Running) -> None:
    reply = server.send("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert reply.body == b"configi_up 1\n"


def test_the_whole_chat_answer_has_the_documented_shape(server: Running) -> None:
    answer = json.loads(server.chat(logprobs=True, top_logprobs=1, max_tokens=1).body)
    assert answer.pop("id").startswith("chatcmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer.pop("system_fingerprint").startswith("configi-")
    raw = list(b"Paris")
    assert answer == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Paris", "refusal": None},
                "logprobs": {
                    "content": [
                        {
                            "token": "Paris",
                            "logprob": -0.5,
                            "bytes": raw,
                            "top_logprobs": [{"token": "Paris", "logprob": -0.5, "bytes": [63]}],
                        }
                    ],
                    "refusal": None,
                },
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 1,
            "total_tokens": 6,
            "prompt_tokens_details": {"cached_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
