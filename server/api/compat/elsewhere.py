"""Endpoints that other servers have and this one has not: each is refused with what does it here, or that nothing does.

With a 400, because clients take a 404 for a missing model and repeat it, and with a sentence of its own, because that
is what they show. HTTP process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from starlette.responses import Response

from server.api.default_dialect import OPENAI
from server.api.service import Service
from server.errors import InvalidRequest

DIALECT = OPENAI

_NO_RANKING = "no model for ranking is served"
_TEXT_ONLY = "this server reads and writes text"
_NO_FILES = "this server keeps no files and runs no jobs: send each request by itself"
_RESPONSES = "use POST /v1/responses, which goes on with previous_response_id"
_FIRST_REQUEST = "a model is loaded by the first request that names it"
_INSTEAD = {
    # llama-server's.
    "/completion": "use POST /v1/completions",
    "/apply-template": "use POST /tokenize with messages, then /detokenize",
    "/embedding": "no model for embeddings is served",
    "/rerank": _NO_RANKING,
    "/reranking": _NO_RANKING,
    "/v1/rerank": _NO_RANKING,
    "/v1/reranking": _NO_RANKING,
    # vLLM's and SGLang's.
    "/v2/rerank": _NO_RANKING,
    "/score": f"{_NO_RANKING}; POST /v1/decisions tells how likely given answers are",
    "/v1/score": f"{_NO_RANKING}; POST /v1/decisions tells how likely given answers are",
    "/classify": "use POST /v1/decisions, which tells how likely given answers are",
    "/pooling": "no model for embeddings is served",
    "/generate": "use POST /v1/completions",
    # LM Studio's.
    "/api/v1/chat": "use POST /v1/chat/completions or /v1/responses",
    "/api/v1/models/load": _FIRST_REQUEST,
    "/api/v1/models/unload": "say keep_alive: 0 in a request",
    "/api/v1/models/download": "models are configured in config.toml and fetched at the first request",
    # OpenAI's.
    "/v1/audio": _TEXT_ONLY,
    "/v1/images": _TEXT_ONLY,
    "/v1/videos": _TEXT_ONLY,
    "/v1/realtime": f"{_TEXT_ONLY}, over plain HTTP",
    "/v1/moderations": "there is no moderation",
    **dict.fromkeys(("/v1/files", "/v1/uploads", "/v1/batches", "/v1/fine_tuning", "/v1/vector_stores"), _NO_FILES),
    **dict.fromkeys(("/v1/assistants", "/v1/threads", "/v1/conversations"), _RESPONSES),
    # Anthropic's.
    "/v1/messages/batches": "send each of its messages to POST /v1/messages",
    "/v1/complete": "use POST /v1/messages",
}


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    for path, instead in _INSTEAD.items():
        for below in ("", "/{_:path}"):
            routes.add_api_route(path + below, _refusing(path, instead), methods=["GET", "POST", "DELETE"])
    return routes


def _refusing(path: str, instead: str) -> Callable[[], Awaitable[Response]]:
    async def refuse() -> Response:
        raise InvalidRequest(f"{path} is not served: {instead}.")

    return refuse
