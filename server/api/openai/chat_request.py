"""POST /v1/chat/completions, inwards: body -> conversation and options. Pure functions. HTTP process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from server.api.fields import screen
from server.api.openai.chat_messages import conversation_messages
from server.api.openai.sampling import SamplingFields, TokenLimit, checked_options, model_name
from server.api.tables import CHAT, THINKING_SWITCHES
from server.api.wire import shown, validated
from server.chat.conversation import Conversation, GenerationOptions
from server.chat.parts import Message
from server.errors import InvalidRequest, UnsupportedField
from server.http.body import json_object
from server.settings.types import LimitSettings


class ChatFields(SamplingFields):
    messages: list[Any] = Field(min_length=1)
    max_completion_tokens: TokenLimit | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0)
    chat_template_kwargs: dict[str, Any] = Field({})
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


@dataclass(frozen=True, slots=True)
class ChatCall:
    model: str | None
    conversation: Conversation
    options: GenerationOptions
    stream: bool
    include_usage: bool
    headers: dict[str, str]


def parse_chat(raw: bytes, limits: LimitSettings) -> ChatCall:
    screened = screen(json_object(raw, limits), CHAT)
    fields = validated(ChatFields, screened.values)
    messages, ignored = conversation_messages(fields.messages)
    _check_continuation(fields, messages)
    no_thinking = _template_thinking_off(fields.chat_template_kwargs) or any(
        screened.harmless.get(name, {}) != {} for name in THINKING_SWITCHES
    )
    limit = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
    return ChatCall(
        model=model_name(fields.model),
        conversation=Conversation(messages, template_variables={"enable_thinking": False} if no_thinking else {}),
        options=checked_options(fields, limits, max_tokens=limit, top_logprobs=_top_logprobs(fields, limits)),
        stream=fields.stream,
        include_usage=bool(fields.stream_options.include_usage),
        headers=screened.headers(*ignored),
    )


def _top_logprobs(fields: ChatFields, limits: LimitSettings) -> int | None:
    if not fields.logprobs:
        if fields.top_logprobs is not None:
            raise InvalidRequest("top_logprobs is only possible with logprobs: true.", param="top_logprobs")
        return None
    top = fields.top_logprobs or 0
    if top > limits.max_top_logprobs:
        message = f"top_logprobs is {top}; at most {limits.max_top_logprobs} are possible."
        raise InvalidRequest(message, param="top_logprobs")
    return top


def _check_continuation(fields: ChatFields, messages: tuple[Message, ...]) -> None:
    """A last assistant message is continued, any other is answered; asking for the reverse is a 400."""
    continued = messages[-1].role == "assistant"
    rule = "a last message of the assistant is continued, any other is answered"
    if fields.continue_final_message is not None and fields.continue_final_message != continued:
        raise UnsupportedField(f"continue_final_message does not fit: {rule}.", param="continue_final_message")
    if fields.add_generation_prompt is not None and fields.add_generation_prompt == continued:
        raise UnsupportedField(f"add_generation_prompt does not fit: {rule}.", param="add_generation_prompt")


def _template_thinking_off(kwargs: dict[str, Any]) -> bool:
    """Whether the client turned thinking off. An allow-list: other keys could replace the template or its inputs."""
    for name, value in kwargs.items():
        param = f"chat_template_kwargs.{name[:60]}"
        if name != "enable_thinking":
            message = f"chat_template_kwargs takes enable_thinking only, not {shown(name)}."
            raise UnsupportedField(message, param=param)
        if value is True:
            raise UnsupportedField("enable_thinking: true is not supported: reasoning is not built yet.", param=param)
        if value is not False and value is not None:
            raise InvalidRequest(f"enable_thinking must be a boolean, not {shown(value)}.", param=param)
    return kwargs.get("enable_thinking") is False
