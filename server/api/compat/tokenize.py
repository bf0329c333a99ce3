"""/tokenize and /detokenize, as llama-server and vLLM have them. HTTP process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from msgspec.structs import replace
from pydantic import FailFast, Field
from starlette.responses import Response

from server.api.asked import caller
from server.api.compat.table import DETOKENIZE, TOKENIZE
from server.api.default_dialect import OPENAI
from server.api.fields import Screened, screen
from server.api.markers import without_markers
from server.api.openai.chat_messages import conversation_messages
from server.api.openai.chat_request import check_continuation
from server.api.openai.content import ContentRules
from server.api.openai.reasoning_fields import ThoughtFields, asked_reasoning
from server.api.openai.tool_fields import ToolFields, asked_tools
from server.api.sampling import TokenIds, model_name
from server.api.service import Service
from server.api.wire import Wire, validated
from server.chat.conversation import Conversation, Prompt, RawPrompt
from server.errors import InvalidRequest
from server.http.body import json_object, parsed_body
from server.http.disconnect import while_connected
from server.settings.types import LimitSettings

DIALECT = OPENAI


class TokenizeFields(Wire):
    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = Field(None, min_length=1)
    tools: Annotated[list[Any], FailFast()] = Field([])
    chat_template_kwargs: dict[str, Any] = Field({})
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special: bool | None = None


class DetokenizeFields(Wire):
    model: str | None = None
    tokens: TokenIds


@dataclass(frozen=True, slots=True)
class TokenizeCall:
    model: str | None
    prompt: Prompt
    # What the prompt is called in the request.
    field: str
    add_special: bool
    headers: dict[str, str]


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    limits = service.settings.limits

    @routes.post("/tokenize")
    @routes.post("/v1/tokenize")
    async def tokenize(request: Request) -> Response:
        call = await parsed_body(request, partial(_parse_tokenize, limits=limits))
        return await while_connected(request, _tokenize(service, call, caller(request, service.settings).client.group))

    @routes.post("/detokenize")
    @routes.post("/v1/detokenize")
    async def detokenize(request: Request) -> Response:
        screened, fields = await parsed_body(request, partial(_parse_detokenize, limits=limits))
        return await while_connected(
            request, _detokenize(service, screened, fields, caller(request, service.settings).client.group)
        )

    return routes


async def _tokenize(service: Service, call: TokenizeCall, client: str) -> Response:
    try:
        tokens = await service.tokenize(call.model, call.prompt, call.add_special, client)
    except InvalidRequest as error:
        error.param = call.field
        raise
    model = service.model(call.model) if call.model else service.default_model()
    known = {"tokens": msgspec.Raw(tokens.json), "count": tokens.count, "max_model_len": model.context_length}
    return _json(known, headers=call.headers)


async def _detokenize(service: Service, screened: Screened, fields: DetokenizeFields, client: str) -> Response:
    try:
        text = await service.detokenize(model_name(fields.model), fields.tokens, client)
    except InvalidRequest as error:
        error.param = "tokens"
        raise
    # As llama-server calls it, and as vLLM does.
    return _json({"content": text, "prompt": text}, headers=screened.headers())


def _parse_tokenize(raw: bytes, limits: LimitSettings) -> TokenizeCall:
    screened = screen(json_object(raw, limits), TOKENIZE)
    fields = validated(TokenizeFields, screened.values, screened.spelled)
    given = [name for name in ("content", "prompt", "messages") if name in screened.values]
    if len(given) != 1:
        raise InvalidRequest("One of content, prompt and messages is needed.", param=given[-1] if given else "content")
    ignored: tuple[str, ...] = ()
    if fields.messages is not None:
        prompt, ignored = _conversation(fields, fields.messages, limits)
    else:
        prompt = RawPrompt(fields.prompt if fields.prompt is not None else fields.content or "")
    # llama-server's `content` adds none by default, vLLM's `prompt` does; a template brings its own.
    add_special = fields.add_special if fields.add_special is not None else fields.prompt is not None
    return TokenizeCall(model_name(fields.model), prompt, given[0], add_special, screened.headers(*ignored))


def _conversation(fields: TokenizeFields, raw: list[Any], limits: LimitSettings) -> tuple[Prompt, tuple[str, ...]]:
    """As a chat would render it, or as it stands where no answer is to begin and no last message to be continued."""
    messages, dropped = conversation_messages(raw, ContentRules(limits.images == "omit"))
    # As chat reads them.
    messages, markers = without_markers(messages)
    tools = asked_tools(ToolFields(tools=fields.tools), limits)
    asked = asked_reasoning(ThoughtFields(chat_template_kwargs=fields.chat_template_kwargs))
    conversation = Conversation(messages, tools.tools, asked.switches, asked.reasoning)
    continued, answered = fields.continue_final_message, fields.add_generation_prompt
    if (continued if conversation.continues else answered) is False and True not in (continued, answered):
        conversation = replace(conversation, open=False)
    else:
        check_continuation(conversation, continued, answered)
    return conversation, (*markers, *dropped, *tools.ignored)


def _parse_detokenize(raw: bytes, limits: LimitSettings) -> tuple[Screened, DetokenizeFields]:
    screened = screen(json_object(raw, limits), DETOKENIZE)
    return screened, validated(DetokenizeFields, screened.values)


def _json(payload: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(payload), headers=headers, media_type="application/json")
