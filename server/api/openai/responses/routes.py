"""POST /v1/responses and what belongs to it: get, delete, input_items, cancel, compact, input_tokens. HTTP process."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.asked import caller
from server.api.collected import collect
from server.api.default_dialect import OPENAI, envelope
from server.api.openai.responses.answer import GrowingResponse, ResponseStream
from server.api.openai.responses.compact import compacted, compaction_request
from server.api.openai.responses.listed import page
from server.api.openai.responses.request import ResponseCall, parse_response, response_call
from server.api.openai.responses.store import ResponseStore
from server.api.openai.responses.truncation import generate
from server.api.service import Service
from server.chat.conversation import GenerationRequest
from server.chat.deltas import Event
from server.errors import ConfigiError, NotFound, ResponseCancelled, UnsupportedField
from server.http.body import parsed_body
from server.http.dialect import Dialect
from server.http.disconnect import while_connected
from server.http.sse import stream


def _error_event(error: ConfigiError) -> bytes:
    body = {**envelope(error)["error"], "type": "error"}
    return b"event: error\ndata: " + msgspec.json.encode(body) + b"\n\n"


DIALECT = Dialect(error_body=OPENAI.error_body, error_event=_error_event, paths=("/v1/responses", "/responses"))


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    limits = service.settings.limits
    store = ResponseStore(limits.stored_responses, limits.stored_response_age_s)
    making = _Making(service, store)
    _add_asking(routes, service, store, making)
    _add_stored(routes, service, store, making)
    return routes


def _add_asking(routes: APIRouter, service: Service, store: ResponseStore, making: _Making) -> None:
    """What takes a whole request: to answer it, to count it, to sum it up."""

    async def call_of(request: Request) -> tuple[ResponseCall, GenerationRequest]:
        return await _call_of(request, service, store)

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


def _add_stored(routes: APIRouter, service: Service, store: ResponseStore, making: _Making) -> None:
    """What is done with a response by its id. Behind the others: an id may be any word."""

    def owner(request: Request) -> str:
        return caller(request, service.settings).client.group

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
        return _json(page(store.get(owner(request), id).items, request.query_params))

    @routes.post("/v1/responses/{id}/cancel")
    @routes.post("/responses/{id}/cancel")
    async def cancel(request: Request, id: str) -> Response:
        return _json(making.cancel(owner(request), id) or store.get(owner(request), id).body)


async def _call_of(request: Request, service: Service, store: ResponseStore) -> tuple[ResponseCall, GenerationRequest]:
    limits = service.settings.limits
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


class _Making:
    """The responses that are being made, so that each can be cancelled by its id."""

    def __init__(self, service: Service, store: ResponseStore) -> None:
        self._service = service
        self._store = store
        self._running: dict[tuple[str, str], GrowingResponse] = {}
        self._cancelled: set[tuple[str, str]] = set()

    def cancel(self, owner: str, id: str) -> dict[str, Any] | None:
        """What there is of it; it ends at its next event. None when it is not being made."""
        response = self._running.get((owner, id))
        if response is None:
            return None
        self._cancelled.add((owner, id))
        return response.body("cancelled")

    async def respond(self, call: ResponseCall, asked: GenerationRequest) -> Response:
        owner = asked.client.group
        keep = partial(self._store.put, owner, items=call.items) if call.fields.store else None
        response = GrowingResponse(call, keep)
        events = self._events(asked, call.fields.truncation == "auto", owner, response)
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
        self, asked: GenerationRequest, truncate: bool, owner: str, response: GrowingResponse
    ) -> AsyncGenerator[Event, None]:
        key = (owner, response.id)
        self._running[key] = response
        try:
            async with aclosing(generate(self._service, asked, truncate)) as events:
                async for event in events:
                    if key in self._cancelled:
                        raise ResponseCancelled("The response was cancelled.")
                    yield event
        finally:
            del self._running[key]
            self._cancelled.discard(key)


async def _count(service: Service, call: ResponseCall, client: str) -> Response:
    tokens = await service.tokenize(call.model, call.conversation, False, client)
    return _json({"object": "response.input_tokens", "input_tokens": tokens.count}, call.headers)


async def _compact(service: Service, call: ResponseCall, asked: GenerationRequest) -> Response:
    answer = await collect(service.generate(compaction_request(asked)), 1)
    return _json(compacted(answer, call), call.headers)


def _json(payload: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(payload), headers=headers, media_type="application/json")
