"""LM Studio's own list of models, GET /api/v0/models, by which Zed and JetBrains find them. HTTP process.

Its /api/v0/chat/completions and /api/v0/completions are OpenAI's, and routes of those.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from server.api.default_dialect import OPENAI
from server.api.service import Service
from server.chat.description import Description
from server.models.status import ModelStatus

DIALECT = OPENAI


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/api/v0/models")
    async def list_models() -> Response:
        models = await asyncio.gather(*(_model(service, model.id) for model in service.models()))
        return _json({"object": "list", "data": models})

    @routes.get("/api/v0/models/{name:path}")
    async def retrieve_model(name: str) -> Response:
        return _json(await _model(service, service.model(name).id))

    return routes


async def _model(service: Service, id: str) -> dict[str, Any]:
    about = await service.description(id) or Description()
    # After its files were read, which tell the context.
    return _shown(service.model(id), about)


def _shown(model: ModelStatus, about: Description) -> dict[str, Any]:
    owner, slash, _ = model.id.partition("/")
    loaded = model.state == "ready"
    shown: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "type": "llm",
        "publisher": owner if slash else "configi",
        "arch": about.architecture,
        "compatibility_type": "mlx",
        "quantization": about.dtype if about.bits is None else f"{about.bits}bit",
        "state": "loaded" if loaded else "not-loaded",
        "max_context_length": model.context_length,
        "capabilities": ["tool_use"] if about.tools else [],
    }
    if loaded:
        shown["loaded_context_length"] = model.context_length_now or model.context_length
    return shown


def _json(payload: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(payload), media_type="application/json")
