"""POST /v1/responses and what belongs to it: get, delete, input_items, cancel, compact, input_tokens. HTTP process."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams
from starlette.responses import Response

from server.api.asked import caller
from server.api.collected import collect
from server.api.default_dialect import OPENAI, envelope
from server.api.openai.responses.answer import GrowingResponse, ResponseStream
from server.api.openai.responses.compact import compacted, compaction_request
from server.api.openai.responses.request import ResponseCall, parse_response, response_call
from server.api.openai.responses.store import ResponseStore
from server.api.openai.responses.truncation import generate
from server.api.service import Service
from server.chat.conversation import GenerationRequest
from server.chat.deltas import Event
from server.errors import ConfigiError, InvalidRequest, NotFound, ResponseCancelled, UnsupportedField
from server.http.body import parsed_body
from server.http.dialect import Dialect
from server.http.disconnect import while_connected
from server.http.sse import stream

_PAGE = 20
_LONGEST_PAGE = 100


def _error_event(error: ConfigiError) -> bytes:
    body = {"type": "error", **envelope(error)["error"]}
    return b"event: error\ndata: " + msgspec.json.encode(body) + b"\n\n"


DIALECT = Dialect(error_body=OPENAI.error_body, error_event=_error_event, paths=("/v1/responses", "/responses"))


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    limits = service.settings.limits
    store = ResponseStore(limits.stored_responses, limits.stored_response_age_s)
    making = _Making(service, store)

    async def call_of(request: Request) -> tuple[ResponseCall, GenerationRequest]:
        parsed = await parsed_body(request, partial(parse_response, limits=limits))
        who = caller(request, service.settings, parsed.fields.cache_salt)
        call = response_call(parsed, limits, store, who.client.group)
        asked = GenerationRequest(
            who.request_id,
            call.model,
            call.conversation,
            call.options,
            who.client,
            wait_for_model=call.fields.stream,
            keep_alive_s=call.fields.keep_alive,
            notes=call.notes,
        )
        return call, asked

    def owner(request: Request) -> str:
        return caller(request, service.settings).client.group

    @routes.post("/v1/responses")
    @routes.post("/responses")
    async def create(request: Request) -> Response:
        call, asked = await call_of(request)
        return await while_connected(request, making.respond(call, asked))

    @routes.get("/v1/responses")
    @routes.get("/responses")
    async def no_socket() -> Response:
        # Copilot tries a websocket first, and at a 404 falls back to POST at once.
        raise NotFound("Responses are created by POST; there is no websocket here.")

    @routes.post("/v1/responses/input_tokens")
    @routes.post("/responses/input_tokens")
    async def input_tokens(request: Request) -> Response:
        call, asked = await call_of(request)
        return await while_connected(request, _count(service, call, asked.client.group))

    @routes.post("/v1/responses/compact")
    @routes.post("/responses/compact")
    async def compact(request: Request) -> Response:
        call, asked = await call_of(request)
        return await while_connected(request, _compact(service, call, asked))

    @routes.get("/v1/responses/{id}")
    @routes.get("/responses/{id}")
    async def get(request: Request, id: str) -> Response:
        if request.query_params.get("stream") == "true":
            raise UnsupportedField("A stored response cannot be streamed again; get it whole.", param="stream")
        return _json(store.get(owner(request), id).body)

    @routes.delete("/v1/responses/{id}")
    @routes.delete("/responses/{id}")
    async def delete(request: Request, id: str) -> Response:
        store.delete(owner(request), id)
        return _json({"id": id, "object": "response", "deleted": True})

    @routes.get("/v1/responses/{id}/input_items")
    @routes.get("/responses/{id}/input_items")
    async def input_items(request: Request, id: str) -> Response:
        return _json(_page(store.get(owner(request), id).items, request.query_params))

    @routes.post("/v1/responses/{id}/cancel")
    @routes.post("/responses/{id}/cancel")
    async def cancel(request: Request, id: str) -> Response:
        if making.cancel(owner(request), id):
            return _json({"id": id, "object": "response", "status": "cancelled"})
        return _json(store.get(owner(request), id).body)

    return routes


class _Making:
    """The responses that are being made, so that each can be cancelled by its id."""

    def __init__(self, service: Service, store: ResponseStore) -> None:
        self._service = service
        self._store = store
        self._running: dict[tuple[str, str], bool] = {}

    def cancel(self, owner: str, id: str) -> bool:
        """Whether it was being made; it ends at its next event."""
        if (owner, id) not in self._running:
            return False
        self._running[owner, id] = False
        return True

    async def respond(self, call: ResponseCall, asked: GenerationRequest) -> Response:
        owner = asked.client.group
        keep = partial(self._store.put, owner, items=call.items) if call.fields.store else None
        response = GrowingResponse(call, keep)
        events = self._events(asked, call.fields.truncation == "auto", (owner, response.id))
        if call.fields.stream:
            renderer = ResponseStream(response, call.fields.return_progress)
            dialect = replace(DIALECT, error_event=renderer.error)
            return await stream(events, renderer, dialect, self._service.settings.server, call.headers)
        async with aclosing(events):
            async for event in events:
                for _ in response.take(event):
                    pass
        body = response.end()
        return _json(body, {**call.headers, **response.cache_headers()})

    async def _events(
        self, asked: GenerationRequest, truncate: bool, key: tuple[str, str]
    ) -> AsyncGenerator[Event, None]:
        self._running[key] = True
        try:
            async with aclosing(generate(self._service, asked, truncate)) as events:
                async for event in events:
                    if not self._running[key]:
                        raise ResponseCancelled("The response was cancelled.")
                    yield event
        finally:
            del self._running[key]


async def _count(service: Service, call: ResponseCall, client: str) -> Response:
    tokens = await service.tokenize(call.model, call.conversation, False, client)
    return _json({"object": "response.input_tokens", "input_tokens": tokens.count}, call.headers)


async def _compact(service: Service, call: ResponseCall, asked: GenerationRequest) -> Response:
    answer = await collect(service.generate(compaction_request(asked)), 1)
    return _json(compacted(answer, call), call.headers)


def _page(items: list[Any], asked: QueryParams) -> dict[str, Any]:
    """The newest first unless asked otherwise, as OpenAI lists them. Items that came without an id have their place."""
    named = [{"id": f"item_{index}", "type": "message", **item} for index, item in enumerate(items)]
    if asked.get("order") != "asc":
        named.reverse()
    after = asked.get("after")
    if after is not None:
        places = [index for index, item in enumerate(named) if item["id"] == after]
        if not places:
            raise InvalidRequest("after names no item of this response.", param="after")
        named = named[places[0] + 1 :]
    limit = asked.get("limit", str(_PAGE))
    if not limit.isdecimal() or not 1 <= int(limit[:4]) <= _LONGEST_PAGE:
        raise InvalidRequest(f"limit must be a whole number from 1 to {_LONGEST_PAGE}.", param="limit")
    page = named[: int(limit)]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"object": "list", "data": page, **ends, "has_more": len(named) > len(page)}


def _json(payload: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(payload), headers=headers, media_type="application/json")
