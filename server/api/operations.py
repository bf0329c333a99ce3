"""/health, /ready and /metrics. HTTP process.

/health says that the server lives and makes progress; /ready that the default model is resident.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from server import __version__
from server.api.default_dialect import OPENAI, envelope
from server.api.errors import error_response
from server.api.service import Service
from server.errors import ConfigiError, ModelLoading, ModelUnavailable
from server.models.status import ModelStatus

DIALECT = OPENAI
# By which the `configi` command knows its server before it sends a key.
_IDENTITY = {"x-configi": __version__}
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health")
    @routes.get("/v1/health")
    async def health() -> Response:
        if service.healthy():
            return _json({"status": "ok"}, headers=_IDENTITY)
        return error_response(DIALECT, ModelUnavailable("The server is not making progress."), _IDENTITY)

    @routes.get("/ready")
    async def ready() -> Response:
        return _readiness(service.default_model())

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics(), media_type=_METRICS_TYPE)

    return routes


def _readiness(model: ModelStatus) -> Response:
    state = {"model": model.id, **model.told}
    if model.state == "ready":
        return _json(state)
    failed = model.state == "failed"
    error: ConfigiError = ModelUnavailable(model.text) if failed else ModelLoading(model.text)
    return _json({**envelope(error), **state}, error.status, DIALECT.headers(error))


def _json(payload: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(payload), status, headers=headers, media_type="application/json")
