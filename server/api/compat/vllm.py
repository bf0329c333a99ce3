"""vLLM's GET /tokenizer_info: what a client needs that renders chats and counts tokens by this server. HTTP process.

lm-eval's remote tokenizer asks it, and then POST /tokenize and /detokenize of `operations.py`.
"""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from server.api.default_dialect import OPENAI
from server.api.service import Service
from server.errors import ModelUnavailable

DIALECT = OPENAI
# lm-eval reads these whether a model has them or not.
_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/tokenizer_info")
    @routes.get("/v1/tokenizer_info")
    async def tokenizer_info(model: str = "") -> Response:
        id = (service.model(model) if model.strip() else service.default_model()).id
        about = await service.description(id)
        if about is None:
            raise ModelUnavailable(
                f"The tokenizer of '{id}' was not read: its files are not on this machine, or broken. "
                "The first request to the model obtains them, or says what is wrong."
            )
        info = {
            **dict.fromkeys(_NAMES),
            **about.special,
            "model_max_length": service.model(id).context_length,
            "chat_template": about.template,
        }
        return Response(msgspec.json.encode(info), media_type="application/json")

    return routes
