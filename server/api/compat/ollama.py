"""By what Ollama's clients find models: /api/version, /api/tags, /api/show and /api/ps. HTTP process.

VS Code's Copilot and Codex look here and then talk OpenAI's protocols on the same port. What Ollama's own protocol does
beyond that is refused with the path that does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.compat.table import SHOW
from server.api.default_dialect import OPENAI
from server.api.fields import Screened, screen
from server.api.sampling import model_name
from server.api.service import Service
from server.api.wire import Wire, validated
from server.chat.description import Description
from server.errors import InvalidRequest
from server.http.body import json_object, parsed_body
from server.models.status import ModelStatus
from server.settings.types import LimitSettings

DIALECT = OPENAI
# The interface that is answered here, and not this server's version: Copilot needs 0.6.4, and Codex 0.13.4, the first
# with Responses.
_INTERFACE = "0.13.4"
_INSTEAD = {
    "chat": "use POST /v1/chat/completions",
    "generate": "use POST /v1/completions or /v1/chat/completions",
    "embed": "no model for embeddings is served",
    "embeddings": "no model for embeddings is served",
    "pull": "models are configured in config.toml and fetched at the first request",
    "push": "models are configured in config.toml",
    "create": "models are configured in config.toml",
    "copy": "models are configured in config.toml",
    "delete": "models are configured in config.toml",
}
_UNKNOWN = Description()


class ShowFields(Wire):
    model: str | None = None


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    parse = partial(_parse_show, limits=service.settings.limits)

    @routes.get("/api/version")
    async def version() -> Response:
        return _json({"version": _INTERFACE})

    @routes.get("/api/tags")
    async def tags() -> Response:
        models = service.models()
        abouts = await asyncio.gather(*(_described(service, model) for model in models))
        return _json({"models": list(map(_entry, models, abouts))})

    @routes.post("/api/show")
    async def show(request: Request) -> Response:
        screened, fields = await parsed_body(request, parse)
        name = model_name(fields.model)
        model = service.model(name) if name else service.default_model()
        about = await _described(service, model)
        # After its files were read, which tell the context.
        return _json(_shown(service.model(model.id), about), screened.headers())

    @routes.get("/api/ps")
    async def running() -> Response:
        ready = [model for model in service.models() if model.state == "ready"]
        return _json({"models": [_running(model, await _described(service, model)) for model in ready]})

    for action, instead in _INSTEAD.items():
        routes.add_api_route(f"/api/{action}", _refused(action, instead), methods=["POST", "DELETE"])
    return routes


def _refused(action: str, instead: str) -> Callable[[], Awaitable[Response]]:
    async def refused() -> Response:
        raise InvalidRequest(f"Ollama's /api/{action} is not served: {instead}.")

    return refused


async def _described(service: Service, model: ModelStatus) -> Description:
    return await service.description(model.id) or _UNKNOWN


def _entry(model: ModelStatus, about: Description) -> dict[str, Any]:
    modified = datetime.fromtimestamp(about.modified, UTC).isoformat()
    return {
        "name": model.id,
        "model": model.id,
        "modified_at": modified,
        "size": about.weight_bytes,
        "digest": about.digest,
        "details": _details(about),
    }


def _details(about: Description) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": about.architecture,
        "families": [about.architecture],
        # Not known without reading the weights.
        "parameter_size": "",
        "quantization_level": about.dtype if about.bits is None else f"{about.bits}-bit",
    }


def _shown(model: ModelStatus, about: Description) -> dict[str, Any]:
    arch = about.architecture
    info: dict[str, Any] = {"general.architecture": arch, "general.basename": model.id}
    if model.context_length is not None:
        info[f"{arch}.context_length"] = model.context_length
    return {
        "modelfile": "",
        "parameters": "",
        "template": about.template or "",
        "details": _details(about),
        "model_info": info,
        "capabilities": _capabilities(about),
        "modified_at": datetime.fromtimestamp(about.modified, UTC).isoformat(),
    }


def _capabilities(about: Description) -> list[str]:
    has = {"completion": True, "tools": about.tools, "thinking": about.reasoning, "insert": about.infill}
    return [name for name, given in has.items() if given]


def _running(model: ModelStatus, about: Description) -> dict[str, Any]:
    return {
        **_entry(model, about),
        "size_vram": about.weight_bytes,
        "context_length": model.context_length_now or model.context_length,
        # A model stays as settings and requests say; the moment is not told.
        "expires_at": "0001-01-01T00:00:00Z",
    }


def _parse_show(raw: bytes, limits: LimitSettings) -> tuple[Screened, ShowFields]:
    screened = screen(json_object(raw, limits), SHOW)
    return screened, validated(ShowFields, screened.values, screened.spelled)


def _json(payload: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(payload), headers=headers, media_type="application/json")
