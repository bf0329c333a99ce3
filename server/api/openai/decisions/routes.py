"""POST /v1/decisions: the route. HTTP process."""

from __future__ import annotations

from functools import partial

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.asked import Caller, caller
from server.api.cache_headers import cache_headers
from server.api.default_dialect import OPENAI
from server.api.openai.decisions.answer import decision
from server.api.openai.decisions.request import DecisionCall, parse_decision
from server.api.service import Service
from server.chat.conversation import DecisionRequest
from server.http.body import parsed_body
from server.http.disconnect import while_connected

DIALECT = OPENAI


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    parse = partial(parse_decision, limits=service.settings.limits)

    @routes.post("/v1/decisions")
    @routes.post("/decisions")
    async def decisions(request: Request) -> Response:
        call = await parsed_body(request, parse)
        who = caller(request, service.settings, call.cache_salt)
        return await while_connected(request, _respond(service, call, who))

    return routes


async def _respond(service: Service, call: DecisionCall, who: Caller) -> Response:
    asked = DecisionRequest(who.request_id, call.model, call.inquiry, who.client, call.keep_alive_s)
    decided = await service.decide(asked)
    body = msgspec.json.encode(decision(decided, call.questions))
    headers = {**call.headers, **cache_headers([decided.usage])}
    return Response(body, headers=headers, media_type="application/json")
