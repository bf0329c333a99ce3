"""POST /v1/chat/completions, inwards: body -> conversation and options. Pure functions. HTTP process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from server.api.fields import screen
from server.api.markers import notes, without_markers
from server.api.openai.chat_messages import conversation_messages
from server.api.openai.content import ContentRules
from server.api.openai.reasoning_fields import ThoughtFields, asked_reasoning
from server.api.openai.table import CHAT
from server.api.openai.tool_fields import ToolFields, asked_tools
from server.api.sampling import SamplingFields, TokenLimit, checked_options, model_name
from server.api.wire import Whole, validated
from server.chat.conversation import Conversation, GenerationOptions
from server.errors import InvalidRequest, UnsupportedField
from server.http.body import json_object
from server.settings.types import LimitSettings


class ChatFields(SamplingFields, ThoughtFields, ToolFields):
    messages: list[Any] = Field(min_length=1)
    max_completion_tokens: TokenLimit | None = None
    logprobs: bool = False
    top_logprobs: Whole | None = Field(None, ge=0)
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """What of an answer the client gets to see, and how. `functions`: calls in the form of the former API."""

    usage: bool = False
    logprobs: bool = False
    reasoning: bool = True
    functions: bool = False
    token_ids: bool = False
    progress: bool = False


@dataclass(frozen=True, slots=True)
class ChatCall:
    model: str | None
    conversation: Conversation
    options: GenerationOptions
    stream: bool
    shown: Shown
    cache_salt: str
    keep_alive_s: float | None
    notes: tuple[str, ...]
    headers: dict[str, str]


def parse_chat(raw: bytes, limits: LimitSettings) -> ChatCall:
    screened = screen(json_object(raw, limits), CHAT)
    fields = validated(ChatFields, screened.values, screened.spelled)
    messages, dropped = conversation_messages(fields.messages, ContentRules(limits.images == "omit"))
    messages, markers = without_markers(messages)
    tools = asked_tools(fields, limits)
    asked = asked_reasoning(fields)
    conversation = Conversation(messages, tools.tools, asked.switches, asked.reasoning)
    check_continuation(conversation, fields.continue_final_message, fields.add_generation_prompt)
    limit = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
    options = checked_options(
        fields,
        limits,
        max_tokens=limit,
        top_logprobs=_top_logprobs(fields, limits),
        tool_choice=tools.choice,
        reasoning=asked.reasoning,
    )
    return ChatCall(
        model=model_name(fields.model),
        conversation=conversation,
        options=options,
        stream=fields.stream,
        shown=Shown(
            usage=bool(fields.stream_options.include_usage),
            logprobs=fields.logprobs,
            reasoning=asked.shown,
            functions=tools.legacy,
            token_ids=fields.return_token_ids,
            progress=fields.return_progress,
        ),
        cache_salt=fields.cache_salt,
        keep_alive_s=fields.keep_alive,
        notes=notes(markers),
        headers=screened.headers(*markers, *dropped, *tools.ignored, *asked.ignored),
    )


def _top_logprobs(fields: ChatFields, limits: LimitSettings) -> int | None:
    if not fields.logprobs:
        if fields.top_logprobs:
            raise InvalidRequest("top_logprobs is only possible with logprobs: true.", param="top_logprobs")
        return None
    top = fields.top_logprobs or 0
    if top > limits.max_top_logprobs:
        message = f"top_logprobs is {top}; at most {limits.max_top_logprobs} are possible."
        raise InvalidRequest(message, param="top_logprobs")
    return top


def check_continuation(conversation: Conversation, continued: bool | None, answered: bool | None) -> None:
    """A last assistant message is continued, any other is answered; asking for the reverse is a 400."""
    rule = "a last message of the assistant is continued, any other is answered"
    if continued is not None and continued != conversation.continues:
        raise UnsupportedField(f"continue_final_message does not fit: {rule}.", param="continue_final_message")
    if answered is not None and answered == conversation.continues:
        raise UnsupportedField(f"add_generation_prompt does not fit: {rule}.", param="add_generation_prompt")
