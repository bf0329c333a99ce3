"""What llama-server has beside OpenAI's API: POST /infill and GET /props. HTTP process.

llama.vscode and llama.vim complete by /infill; /props tells them, and others, how long the context is.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from server import __version__
from server.api.asked import generation
from server.api.cache_headers import cache_headers
from server.api.compat.infill_answer import GrowingInfill, InfillStream, collected
from server.api.compat.infill_request import InfillCall, parse_infill
from server.api.default_dialect import OPENAI
from server.api.service import Service
from server.chat.conversation import GenerationRequest
from server.errors import InvalidRequest
from server.http.body import parsed_body
from server.http.dialect import Dialect
from server.http.disconnect import while_connected
from server.http.sse import stream

# Its streams end with their last event.
DIALECT = Dialect(error_body=OPENAI.error_body, error_event=OPENAI.error_event, paths=("/infill", "/v1/infill"))


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    parse = partial(parse_infill, limits=service.settings.limits)

    @routes.post("/infill")
    @routes.post("/v1/infill")
    async def infill(request: Request) -> Response:
        call = await parsed_body(request, parse)
        asked = generation(request, service.settings, call, call.prompt)
        return await while_connected(request, _infill(service, call, asked))

    @routes.get("/props")
    @routes.get("/v1/props")
    async def props(model: str = "") -> Response:
        return _json(await _props(service, model))

    return routes


async def _infill(service: Service, call: InfillCall, asked: GenerationRequest) -> Response:
    events, answer = service.generate(asked), GrowingInfill(call.response_fields)
    try:
        if call.stream:
            renderer = InfillStream(answer, progress=call.progress)
            return await stream(events, renderer, DIALECT, service.settings.server, call.headers)
        whole = await collected(events, answer)
        return _json(whole, {**call.headers, **cache_headers([answer.usage])})
    except InvalidRequest as error:
        if error.param == "suffix":
            error.param = "input_suffix"
        raise


async def _props(service: Service, name: str) -> dict[str, Any]:
    id = (service.model(name) if name.strip() else service.default_model()).id
    about = await service.description(id)
    # After its files were read, which tell the context.
    model = service.model(id)
    special = about.special if about else {}
    return {
        "default_generation_settings": {"n_ctx": model.context_length_now or model.context_length},
        "total_slots": service.settings.engine.max_concurrent,
        "model_alias": model.id,
        "model_path": model.id,
        "modalities": {"vision": False, "audio": False},
        "chat_template": about.template if about else None,
        "bos_token": special.get("bos_token"),
        "eos_token": special.get("eos_token"),
        "build_info": f"configi-{__version__}",
    }


def _json(payload: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(payload), headers=headers, media_type="application/json")
