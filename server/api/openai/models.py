"""GET /v1/models and /v1/models/{id}: the catalog as OpenAI's list, and as Anthropic's. HTTP process.

Both SDKs ask the same URL, and each reads its own keys. Ids may hold slashes.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from server.api.default_dialect import OPENAI
from server.api.service import Service
from server.api.stamps import wall_time
from server.models.status import ModelStatus

DIALECT = OPENAI


class Model(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "configi"
    # Of Anthropic's list: its word for a model, the name that people see, the moment, the context.
    type: str = "model"
    display_name: str
    created_at: str
    lifecycle: str = "active"
    max_input_tokens: int | None
    # Of vLLM's list: what the weights are called, and the context. A path is nobody's business.
    root: str
    max_model_len: int | None
    # As in /ready, which has them of the default model alone.
    state: str
    text: str
    done: int
    total: int | None
    bytes_per_second: int | None
    seconds_left: float | None
    context_length: int | None
    # What there is memory for while the model is in memory, at most its own.
    context_length_now: int | None
    batched: bool | None
    warning: str | None


class ModelList(msgspec.Struct, frozen=True):
    data: list[Model]
    first_id: str | None
    last_id: str | None
    has_more: bool = False
    object: str = "list"


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    # It is not known when a model was made; the server's start at least does not change between two answers.
    created = wall_time()

    @routes.get("/v1/models")
    @routes.get("/models")
    async def list_models() -> Response:
        await asyncio.gather(*(service.description(status.id) for status in service.models()))
        listed = [_model(status, created) for status in service.models()]
        ids = [model.id for model in listed]
        return _json(ModelList(listed, ids[0] if ids else None, ids[-1] if ids else None))

    @routes.get("/v1/models/{name:path}")
    @routes.get("/models/{name:path}")
    async def retrieve_model(name: str) -> Response:
        id = service.model(name).id
        # Its files tell the context.
        await service.description(id)
        return _json(_model(service.model(id), created))

    return routes


def _model(status: ModelStatus, created: int) -> Model:
    return Model(
        id=status.id,
        created=created,
        display_name=status.id,
        created_at=datetime.fromtimestamp(created, UTC).isoformat(),
        max_input_tokens=status.context_length,
        root=status.id,
        max_model_len=status.context_length,
        context_length=status.context_length,
        context_length_now=status.context_length_now,
        batched=status.batched,
        warning=status.warning,
        **status.told,
    )


def _json(payload: Model | ModelList) -> Response:
    return Response(msgspec.json.encode(payload), media_type="application/json")
