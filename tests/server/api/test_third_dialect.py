"""A third dialect, added in one file: its own route, request, events, errors and end of stream, on a real socket."""

from __future__ import annotations

import ast
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, Request
from pydantic import SecretStr
from starlette.responses import Response

from server.api.collected import collect
from server.api.openai import chat_completions, completions
from server.api.protocols import WireProtocol
from server.api.service import Service
from server.app import PROTOCOLS
from server.chat.conversation import Conversation, GenerationOptions, GenerationRequest
from server.chat.deltas import Event, Finish, TextDelta
from server.chat.parts import Message
from server.errors import ConfigiError, InvalidRequest
from server.http.body import json_object
from server.http.dialect import Dialect
from server.http.disconnect import while_connected
from server.http.sse import stream
from server.settings.types import ServerSettings, Settings
from tests.support import http_raw
from tests.support.scripted_service import REPLY, Running, ScriptedService, running

KEY = "right-key"
PATH = "/telegraph/send"


def _event(name: str, text: str) -> bytes:
    return f"event: {name}\ndata: {text}\n\n".encode()


class Telegraph:
    """A dialect is this much: how its errors read, and a router."""

    DIALECT = Dialect(
        error_body=lambda error: json.dumps({"trouble": {"kind": type(error).__name__, "why": error.message}}).encode(),
        error_event=lambda error: _event("trouble", type(error).__name__),
        last_frame=_event("over", "and out"),
        paths=("/telegraph",),
    )

    def router(self, service: Service) -> APIRouter:
        routes = APIRouter()

        @routes.post(PATH)
        async def send(request: Request) -> Response:
            body = json_object(await request.body(), service.settings.limits)
            return await while_connected(request, self._respond(service, body))

        return routes

    async def _respond(self, service: Service, body: dict[str, Any]) -> Response:
        if not isinstance(body.get("say"), str):
            raise InvalidRequest("say must be a string.", param="say")
        conversation = Conversation((Message.plain("user", body["say"]),))
        events = service.generate(GenerationRequest("telegram", None, conversation, GenerationOptions()))
        if body.get("key_by_key"):
            return await stream(events, Keys(), self.DIALECT, service.settings.server, {})
        answer = await collect(events, 1)
        return Response(answer.choices[0].text.upper().replace(".", " STOP"), media_type="text/plain")


class Keys:
    def render(self, event: Event) -> bytes:
        match event:
            case TextDelta():
                return _event("key", event.text.strip().upper())
            case Finish():
                return _event("stop", event.reason)
        return b""

    def end(self) -> bytes:
        return b""


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    settings = Settings(server=ServerSettings(max_body=1024))
    with running(ScriptedService(settings), (*PROTOCOLS, Telegraph()), guarded=True) as up:
        yield up


def _trouble(kind: str, body: bytes) -> str:
    trouble = json.loads(body)["trouble"]
    assert (set(trouble), trouble["kind"]) == ({"kind", "why"}, kind)
    return str(trouble["why"])


def test_its_answers_are_its_own(server: Running) -> None:
    assert server.send("POST", PATH, {"say": "hello"}).body.decode() == "PARIS IS THE CAPITAL É☃ STOP"


def test_its_streams_are_framed_and_ended_in_its_own_way(server: Running) -> None:
    body = server.send("POST", PATH, {"say": "hello", "key_by_key": True}).body
    keys = b"".join(_event("key", piece.strip().upper()) for piece in REPLY)
    assert body == keys + _event("stop", "stop") + _event("over", "and out")


@pytest.mark.parametrize(("script", "kind"), [("fail late", "EngineFailed"), ("crash", "ConfigiError")])
def test_an_error_in_its_stream_is_its_own_event(server: Running, script: str, kind: str) -> None:
    body = server.send("POST", PATH, {"say": script, "key_by_key": True}).body
    assert body == _event("trouble", kind) + _event("over", "and out")


def test_errors_of_its_routes_read_as_it_says(server: Running) -> None:
    assert _trouble("InvalidRequest", server.send("POST", PATH, {}).body) == "say must be a string."
    assert _trouble("InvalidRequest", server.send("POST", PATH, {"say": "fail early"}).body) == "The template says no."
    reply = server.send("POST", PATH, {"say": "crash"})
    assert reply.status == 500
    assert "secret" not in _trouble("ConfigiError", reply.body)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [("GET", PATH, 405, "MethodNotAllowed"), ("GET", "//telegraph/nothing", 404, "NotFound")],
)
def test_errors_of_the_framework_at_its_paths_read_as_it_says(
    server: Running, method: str, path: str, status: int, kind: str
) -> None:
    reply = server.send(method, path)
    assert reply.status == status
    _trouble(kind, reply.body)


def test_errors_of_the_guard_at_its_paths_read_as_it_says(server: Running) -> None:
    too_large = server.send("POST", PATH, {"say": "x" * 1024})
    assert too_large.status == 413
    assert too_large.headers["x-request-id"] and too_large.headers["content-type"] == "application/json"
    _trouble("BodyTooLarge", too_large.body)
    assert server.send("POST", "/v1/chat/completions", {"say": "x" * 1024}).json()["error"]["code"] == "body_too_large"


def test_a_wrong_key_at_its_paths_reads_as_it_says() -> None:
    settings = Settings(server=ServerSettings(api_key=SecretStr(KEY)))
    with running(ScriptedService(settings), (*PROTOCOLS, Telegraph()), guarded=True) as locked:
        refused = locked.send("POST", PATH, {"say": "hello"})
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        _trouble("AuthenticationFailed", refused.body)
        assert locked.send("POST", PATH, {"say": "hello"}, authorization=f"Bearer {KEY}").status == 200
        other = locked.send("POST", "/telegraphy", {})
        assert (other.status, other.json()["error"]["code"]) == (401, "invalid_api_key")


def test_an_error_below_the_guard_reads_as_it_says_once_its_path_is_known(server: Running) -> None:
    chunked = http_raw.request("POST", PATH, b"not a chunk\r\n", transfer_encoding="chunked", content_length=None)
    answer = http_raw.exchange(server.port, chunked)
    assert answer is not None and answer.status == 400
    _trouble("InvalidRequest", answer.body)
    nameless = http_raw.exchange(server.port, b"garbage\r\n\r\n")
    assert nameless is not None and nameless.error["type"] == "invalid_request_error"


def _imports(module: types.ModuleType) -> set[str]:
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    return {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def test_chat_and_text_completions_are_two_dialects_that_share_nothing_but_helpers() -> None:
    protocols: tuple[WireProtocol, ...] = (chat_completions, completions)
    assert all(protocol in PROTOCOLS for protocol in protocols)
    chat, text = _imports(chat_completions), _imports(completions)
    assert {"server.api.openai.chat_completions", "server.api.openai.chat_request"}.isdisjoint(text)
    assert {"server.api.openai.completions", "server.api.openai.completions_request"}.isdisjoint(chat)


def test_errors_are_data_that_knows_no_wording() -> None:
    assert {name for name in vars(ConfigiError) if not name.startswith("_")} == {
        "status", "type", "code", "retry_after", "retryable",
    }  # fmt: skip
