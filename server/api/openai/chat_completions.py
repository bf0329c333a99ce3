"""POST /v1/chat/completions: routes, and rendering of events as OpenAI's chat JSON. HTTP process.

The response path is msgspec structs only: it runs once per token of every stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import msgspec
from fastapi import APIRouter, Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from server.api.openai.answer import (
    SYSTEM_FINGERPRINT,
    Answer,
    WireUsage,
    answer_id,
    caller,
    collect,
    unfinished,
    wall_time,
    wire_logprob,
    wire_usage,
)
from server.api.openai.chat_request import ChatCall, parse_chat
from server.api.openai.dialect import OPENAI
from server.api.service import Service
from server.chat.conversation import GenerationRequest
from server.chat.deltas import Event, Finish, ModelPending, PrefillProgress, ScoredToken, Started, TextDelta, Usage
from server.http.body import parsed_body
from server.http.disconnect import while_connected
from server.http.sse import comment, frame, stream

DIALECT = OPENAI


class Alternative(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Alternative]


class Logprobs(msgspec.Struct, frozen=True):
    content: list[ContentLogprob]
    refusal: None = None


class AssistantMessage(msgspec.Struct, frozen=True):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: str | None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str = SYSTEM_FINGERPRINT
    choices: list[ChatChoice]
    usage: WireUsage


class MessageDelta(msgspec.Struct, frozen=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: MessageDelta
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str = SYSTEM_FINGERPRINT
    choices: list[ChunkChoice]
    usage: WireUsage | UnsetType | None


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    parse = partial(parse_chat, limits=service.settings.limits)

    @routes.post("/v1/chat/completions")
    @routes.post("/chat/completions")
    async def chat_completions(request: Request) -> Response:
        call = await parsed_body(request, parse)
        who = caller(request, service.settings)
        generation = GenerationRequest(
            who.request_id, call.model, call.conversation, call.options, who.client, wait_for_model=call.stream
        )
        return await while_connected(request, _respond(service, call, generation))

    return routes


async def _respond(service: Service, call: ChatCall, generation: GenerationRequest) -> Response:
    events = service.generate(generation)
    if call.stream:
        renderer = ChatStream(answer_id("chatcmpl"), wall_time(), call)
        return await stream(events, renderer, DIALECT, service.settings.server, call.headers)
    answer = await collect(events, call.options.n)
    body = msgspec.json.encode(_completion(answer, call))
    return Response(body, headers=call.headers, media_type="application/json")


def _completion(answer: Answer, call: ChatCall) -> ChatCompletion:
    wanted = call.options.top_logprobs is not None
    choices = [
        ChatChoice(index, AssistantMessage(choice.text), _logprobs(choice.tokens) if wanted else None, choice.reason)
        for index, choice in enumerate(answer.choices)
    ]
    return ChatCompletion(
        id=answer_id("chatcmpl"),
        created=wall_time(),
        model=answer.model,
        choices=choices,
        usage=wire_usage([answer.usage]),
    )


def _logprobs(tokens: Sequence[ScoredToken]) -> Logprobs:
    return Logprobs(
        [
            ContentLogprob(
                token.text,
                wire_logprob(token.logprob),
                list(token.raw),
                [Alternative(text, wire_logprob(logprob), list(raw)) for _, text, raw, logprob in token.top],
            )
            for token in tokens
        ]
    )


class ChatStream:
    """Renders one stream. Every chunk carries what clients break without: id, index, finish_reason, role first."""

    def __init__(self, id: str, created: int, call: ChatCall) -> None:
        self._id = id
        self._created = created
        self._model = ""
        self._n = call.options.n
        self._include_usage = call.include_usage
        self._no_usage: UnsetType | None = None if call.include_usage else UNSET
        self._usage: Usage | None = None

    def render(self, event: Event) -> bytes:
        match event:
            case TextDelta(choice, text, tokens):
                if not text and not tokens:
                    return b""
                return self._chunk(
                    ChunkChoice(choice, MessageDelta(content=text), _logprobs(tokens) if tokens else None)
                )
            case Finish():
                return self._chunk(ChunkChoice(event.choice, MessageDelta(), None, event.reason))
            case Started():
                self._model = event.model
                opening = MessageDelta(role="assistant", content="")
                return b"".join(self._chunk(ChunkChoice(index, opening)) for index in range(self._n))
            case ModelPending():
                return comment(event.text)
            case PrefillProgress():
                return comment(f"prompt {event.done} of {event.total} tokens")
            case Usage():
                self._usage = event
        return b""

    def end(self) -> bytes:
        if self._usage is None:
            raise unfinished()
        return self._chunk(None, wire_usage([self._usage])) if self._include_usage else b""

    def _chunk(self, choice: ChunkChoice | None, usage: WireUsage | None = None) -> bytes:
        return frame(
            ChatChunk(
                id=self._id,
                created=self._created,
                model=self._model,
                choices=[choice] if choice else [],
                usage=usage or self._no_usage,
            )
        )
