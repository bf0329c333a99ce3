"""POST /v1/messages and /v1/messages/count_tokens: routes, and Anthropic's error envelope. HTTP process."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.anthropic.output import GrowingMessage, MessageStream
from server.api.anthropic.request import MessagesCall, parse_messages
from server.api.asked import caller, generation
from server.api.service import Service
from server.chat.conversation import GenerationRequest
from server.errors import ConfigiError, ContextLengthExceeded
from server.http.body import parsed_body
from server.http.dialect import Dialect
from server.http.disconnect import while_connected
from server.http.sse import stream

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
# Claude Code looks for these words to know that it must compact.
_TOO_LONG = "prompt is too long: "


def envelope(error: ConfigiError) -> dict[str, Any]:
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    lead = _TOO_LONG if isinstance(error, ContextLengthExceeded) else ""
    return {"type": "error", "error": {"type": kind, "message": lead + error.message}}


DIALECT = Dialect(
    error_body=lambda error: msgspec.json.encode(envelope(error)),
    error_event=lambda error: b"event: error\ndata: " + msgspec.json.encode(envelope(error)) + b"\n\n",
    paths=("/v1/messages", "/messages"),
    id_header="request-id",
)


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    parse = partial(parse_messages, limits=service.settings.limits)

    @routes.post("/v1/messages")
    @routes.post("/messages")
    async def messages(request: Request) -> Response:
        call = await parsed_body(request, parse)
        asked = generation(request, service.settings, call, call.conversation, call.notes)
        return await while_connected(request, _respond(service, call, asked))

    @routes.post("/v1/messages/count_tokens")
    @routes.post("/messages/count_tokens")
    async def count_tokens(request: Request) -> Response:
        call = await parsed_body(request, parse)
        return await while_connected(request, _count(service, call, caller(request, service.settings).client.group))

    return routes


async def _respond(service: Service, call: MessagesCall, asked: GenerationRequest) -> Response:
    events = service.generate(asked)
    if call.stream:
        return await stream(events, MessageStream(call), DIALECT, service.settings.server, call.headers)
    message = GrowingMessage(call)
    async with aclosing(events):
        async for event in events:
            for _ in message.take(event):
                pass
    for _ in message.end():
        pass
    return _json(message.message(), {**call.headers, **message.cache_headers()})


async def _count(service: Service, call: MessagesCall, client: str) -> Response:
    tokens = await service.tokenize(call.model, call.conversation, False, client)
    return _json({"input_tokens": tokens.count}, call.headers)


def _json(payload: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(payload), headers=headers, media_type="application/json")
