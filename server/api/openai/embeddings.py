"""POST /v1/embeddings: refused with a sentence, while no model for embeddings can be configured. HTTP process."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from server.api.default_dialect import OPENAI
from server.api.service import Service
from server.errors import InvalidRequest

DIALECT = OPENAI


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/embeddings")
    @routes.post("/embeddings")
    @routes.post("/api/v0/embeddings")
    async def embeddings() -> Response:
        # 400, because clients take a 404 for a missing model, and repeat what is a 5xx.
        raise InvalidRequest(
            "No embedding model is configured: this server generates text. Choose another server for embeddings.",
            param="model",
        )

    return routes
