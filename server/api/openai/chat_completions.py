"""POST /v1/chat/completions: the routes, and the whole answer as OpenAI's chat JSON. HTTP process."""

from __future__ import annotations

from functools import partial

import msgspec
from fastapi import APIRouter, Request
from msgspec import UNSET
from starlette.responses import Response

from server.api.asked import generation
from server.api.cache_headers import cache_headers
from server.api.collected import Answer, Choice, collect
from server.api.default_dialect import OPENAI
from server.api.openai.chat_request import ChatCall, Shown, parse_chat
from server.api.openai.chat_stream import ChatStream
from server.api.openai.chat_wire import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ToolCall,
    finish_reason,
    function,
    logprobs,
)
from server.api.openai.shown import wire_usage
from server.api.service import Service
from server.api.stamps import answer_id, wall_time
from server.chat.conversation import GenerationRequest
from server.http.body import parsed_body
from server.http.disconnect import while_connected
from server.http.sse import stream

DIALECT = OPENAI


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    parse = partial(parse_chat, limits=service.settings.limits)

    @routes.post("/v1/chat/completions")
    @routes.post("/chat/completions")
    @routes.post("/api/v0/chat/completions")
    async def chat_completions(request: Request) -> Response:
        call = await parsed_body(request, parse)
        asked = generation(request, service.settings, call, call.conversation, call.notes)
        return await while_connected(request, _respond(service, call, asked))

    return routes


async def _respond(service: Service, call: ChatCall, asked: GenerationRequest) -> Response:
    events = service.generate(asked)
    if call.stream:
        renderer = ChatStream(answer_id("chatcmpl-"), wall_time(), call)
        return await stream(events, renderer, DIALECT, service.settings.server, call.headers)
    answer = await collect(events, call.options.n)
    body = msgspec.json.encode(_completion(answer, call.shown))
    headers = {**call.headers, **cache_headers([answer.usage])}
    return Response(body, headers=headers, media_type="application/json")


def _completion(answer: Answer, shown: Shown) -> ChatCompletion:
    return ChatCompletion(
        id=answer_id("chatcmpl-"),
        created=wall_time(),
        model=answer.started.model,
        choices=[_choice(index, choice, shown) for index, choice in enumerate(answer.choices)],
        usage=wire_usage([answer.usage]),
        prompt_token_ids=answer.started.prompt_ids if shown.token_ids else UNSET,
    )


def _choice(index: int, choice: Choice, shown: Shown) -> ChatChoice:
    return ChatChoice(
        index,
        _message(choice, shown),
        logprobs(choice.tokens) if shown.logprobs else None,
        finish_reason(choice.reason, functions=shown.functions),
        choice.ids if shown.token_ids else UNSET,
    )


def _message(choice: Choice, shown: Shown) -> AssistantMessage:
    thought = choice.reasoning if choice.reasoning and shown.reasoning else UNSET
    calls = [ToolCall(call.id, function(call)) for call in choice.calls]
    return AssistantMessage(
        # Null where something else was said; a string, if empty, where nothing was.
        content=choice.text or (None if choice.calls or choice.reasoning else ""),
        reasoning_content=thought,
        reasoning=thought,
        tool_calls=calls if calls and not shown.functions else UNSET,
        function_call=function(choice.calls[0]) if calls and shown.functions else UNSET,
    )
