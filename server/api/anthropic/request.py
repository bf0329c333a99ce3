"""POST /v1/messages, inwards: body -> conversation and options. Pure functions. HTTP process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from server.api.anthropic.blocks import conversation
from server.api.anthropic.table import MESSAGES
from server.api.anthropic.tools import asked_tools, tool_choice
from server.api.fields import Screened, screen, unread
from server.api.markers import notes, without_markers
from server.api.sampling import SamplingFields, TextList, checked_options, model_name
from server.api.tool_checks import check_count
from server.api.wire import Whole, Wire, shown, validated
from server.chat.conversation import Conversation, GenerationOptions, Reasoning
from server.chat.shapes import JsonSchema, Shape
from server.errors import InvalidRequest
from server.http.body import json_object
from server.settings.types import LimitSettings


class ThinkingFields(Wire):
    """`between_tools` where a model knows no such mode is no thinking, at Anthropic as well."""

    type: Literal["enabled", "adaptive", "disabled", "between_tools"]
    budget_tokens: Annotated[Whole, Field(ge=0)] | None = None
    display: Literal["summarized", "omitted", "updates"] | None = None


class OutputConfig(Wire):
    effort: str | None = None
    format: dict[str, Any] | None = None


class MessageFields(SamplingFields):
    messages: list[Any] = Field(min_length=1)
    system: Any = None
    max_tokens: Annotated[Whole, Field(ge=-1)] | None = None
    stop_sequences: TextList = Field([])
    tools: list[Any] = Field([])
    tool_choice: dict[str, Any] | None = None
    thinking: ThinkingFields = ThinkingFields(type="disabled")
    output_config: OutputConfig = OutputConfig()


@dataclass(frozen=True, slots=True)
class MessagesCall:
    """`shows_thinking`: whether the client wants to read it."""

    model: str | None
    conversation: Conversation
    options: GenerationOptions
    stream: bool
    progress: bool
    shows_thinking: bool
    cache_salt: str
    keep_alive_s: float | None
    notes: tuple[str, ...]
    headers: dict[str, str]


def parse_messages(raw: bytes, limits: LimitSettings) -> MessagesCall:
    screened = screen(json_object(raw, limits), MESSAGES)
    fields = validated(MessageFields, screened.values, screened.spelled)
    said = conversation(fields.system, fields.messages, omit_images=limits.images == "omit")
    messages, markers = without_markers(said.messages)
    tools, dropped = asked_tools(fields.tools, said.changes)
    check_count(tools, limits)
    reasoning = _reasoning(fields)
    options = checked_options(
        fields,
        limits,
        max_tokens=fields.max_tokens,
        top_logprobs=None,
        shape=("output_config.format", _shape(fields.output_config.format)),
        stop=(screened.spelled.get("stop_sequences", "stop_sequences"), fields.stop_sequences),
    )
    return MessagesCall(
        model=model_name(fields.model),
        conversation=Conversation(messages, tools, reasoning=reasoning),
        options=replace(
            options,
            tool_choice=tool_choice(fields.tool_choice, tools),
            reasoning=reasoning,
        ),
        stream=fields.stream,
        progress=fields.return_progress,
        shows_thinking=fields.thinking.display != "omitted",
        cache_salt=fields.cache_salt,
        keep_alive_s=fields.keep_alive,
        notes=notes(markers),
        headers=screened.headers(*_without_effect(screened), *markers, *said.dropped, *dropped),
    )


def _without_effect(screened: Screened) -> tuple[str, ...]:
    """Inside of working fields."""
    thinking = screened.values.get("thinking", {})
    modes = ("type",) if thinking.get("type") == "between_tools" else ()
    displays = ("display",) if thinking.get("display") == "updates" else ()
    return (
        *(f"thinking.{key}" for key in (*modes, *displays)),
        *unread([thinking], ThinkingFields.model_fields, "thinking"),
        *unread([screened.values.get("output_config")], OutputConfig.model_fields, "output_config"),
    )


def _reasoning(fields: MessageFields) -> Reasoning:
    if fields.thinking.type in ("disabled", "between_tools"):
        return Reasoning(enabled=False)
    return Reasoning(True, fields.output_config.effort, fields.thinking.budget_tokens)


def _shape(form: dict[str, Any] | None) -> Shape | None:
    match form:
        case None:
            return None
        case {"type": "json_schema", "schema": dict(schema)}:
            return JsonSchema(schema, True, "output_config.format")
    raise InvalidRequest(
        f"output_config.format must be of type json_schema with a schema, not {shown(form)}.",
        param="output_config.format",
    )
