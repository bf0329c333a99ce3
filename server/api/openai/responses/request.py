"""POST /v1/responses, inwards: body -> conversation and options. HTTP process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from server.api.fields import Screened, screen, unread
from server.api.markers import notes, without_markers
from server.api.openai.items import InputMessages, input_messages, item_type
from server.api.openai.responses.changes import Changes, changes
from server.api.openai.responses.store import ResponseStore
from server.api.openai.responses.table import RESPONSES
from server.api.openai.responses.tools import ToolSet, tool_choice, tool_set
from server.api.sampling import SamplingFields, TokenLimit, checked_options, model_name
from server.api.tool_checks import check_count, flag
from server.api.wire import TextOrList, Whole, Wire, shown, validated
from server.chat.conversation import Conversation, GenerationOptions, Reasoning
from server.chat.parts import Message
from server.chat.shapes import AnyJson, JsonSchema, Shape
from server.errors import InvalidRequest, NotFound, PreviousResponseNotFound
from server.http.body import json_object
from server.settings.types import LimitSettings

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"

# The other words for how hard to think are the template's own.
_NO_EFFORT = "none"


class ResponseReasoning(Wire):
    effort: str | None = None
    enabled: bool | None = None
    max_tokens: Annotated[Whole, Field(ge=0)] | None = None
    summary: Any = None
    generate_summary: Any = None

    @property
    def asked_summary(self) -> str | None:
        """`generate_summary` is the older name. The word for none of it is not asking for one."""
        asked = self.summary or self.generate_summary
        return asked if asked in ("auto", "concise", "detailed") else None


class TextFields(Wire):
    format: dict[str, Any] | None = None
    verbosity: Any = None


class ResponseFields(SamplingFields):
    input: TextOrList = ""
    instructions: str | None = None
    tools: list[Any] = Field([])
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    max_output_tokens: TokenLimit | None = None
    top_logprobs: Whole | None = Field(None, ge=0)
    include: list[Any] = Field([])
    text: TextFields = TextFields()
    reasoning: ResponseReasoning = ResponseReasoning()
    store: bool = True
    previous_response_id: str | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    metadata: dict[str, Any] = Field({})
    max_tool_calls: Whole | None = None


@dataclass(frozen=True, slots=True)
class Understood:
    """What the fields and all the items come to."""

    said: InputMessages
    options: GenerationOptions
    tools: ToolSet


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """A body by itself. Not `understood` when it needs the store: it goes on from a response, or refers to an item."""

    fields: ResponseFields
    items: list[Any]
    understood: Understood | None
    screened: Screened


@dataclass(frozen=True, slots=True)
class ResponseCall:
    """`items` are what is stored as the input of this response, those of the responses before it included."""

    fields: ResponseFields
    model: str | None
    items: list[Any]
    conversation: Conversation
    options: GenerationOptions
    tools: ToolSet
    encrypted: bool
    notes: tuple[str, ...]
    headers: dict[str, str]


def parse_response(raw: bytes, limits: LimitSettings) -> ParsedResponse:
    screened = screen(json_object(raw, limits), RESPONSES)
    fields = validated(ResponseFields, screened.values, screened.spelled)
    items = [{"role": "user", "content": fields.input}] if isinstance(fields.input, str) else fields.input
    needs_store = any(map(_refers, items)) or bool(fields.previous_response_id)
    understood = None if needs_store else _understood(fields, items, limits)
    return ParsedResponse(fields, items, understood, screened)


def response_call(parsed: ParsedResponse, limits: LimitSettings, store: ResponseStore, owner: str) -> ResponseCall:
    """Raises InvalidRequest, and NotFound for a previous response that is not stored for `owner`."""
    fields = parsed.fields
    items = [*_previous(fields, store, owner), *_resolved(parsed.items, store, owner)]
    understood = parsed.understood or _understood(fields, items, limits)
    said, options, tools = understood.said, understood.options, understood.tools
    messages, markers = without_markers(_messages(fields, said))
    return ResponseCall(
        fields=fields,
        model=model_name(fields.model),
        items=items,
        conversation=Conversation(messages, tools.tools, reasoning=options.reasoning),
        options=options,
        tools=tools,
        encrypted=ENCRYPTED in fields.include,
        notes=notes(markers),
        headers=parsed.screened.headers(*_unread(parsed.screened), *markers, *said.dropped, *tools.dropped),
    )


def _understood(fields: ResponseFields, items: list[Any], limits: LimitSettings) -> Understood:
    said, changed = _said(items, limits), changes(items)
    tools = tool_set(fields.tools, changed.tools)
    check_count(tools.tools, limits)
    return Understood(said, _options(fields, changed, limits, tools), tools)


def _unread(screened: Screened) -> tuple[str, ...]:
    asked = screened.values
    return (
        *unread([asked.get("reasoning")], ResponseReasoning.model_fields, "reasoning"),
        *unread([asked.get("text")], TextFields.model_fields, "text"),
    )


def _said(items: list[Any], limits: LimitSettings) -> InputMessages:
    if len(items) > limits.max_messages:
        message = f"input has {len(items)} items; at most {limits.max_messages} are possible."
        raise InvalidRequest(message, param="input")
    return input_messages(items, omit_images=limits.images == "omit")


def _refers(item: Any) -> bool:
    return isinstance(item, dict) and item_type(item) == "item_reference"


def _resolved(items: list[Any], store: ResponseStore, owner: str) -> Iterator[Any]:
    """With the items that others refer to in their place: what is stored again is whole by itself."""
    for index, item in enumerate(items):
        if not _refers(item):
            yield item
            continue
        where, id = f"input.{index}", item.get("id")
        found = store.item(owner, id) if isinstance(id, str) else None
        if found is None:
            message = f"{where} refers to an item that is not stored here; send the item itself."
            raise InvalidRequest(message, param=where)
        yield found


def _previous(fields: ResponseFields, store: ResponseStore, owner: str) -> list[Any]:
    # Some clients send an empty one for the first turn.
    if not fields.previous_response_id:
        return []
    try:
        before = store.get(owner, fields.previous_response_id)
    except NotFound:
        raise PreviousResponseNotFound(
            "There is no stored response with this id, or it was forgotten meanwhile: send the whole conversation.",
            param="previous_response_id",
        ) from None
    return [*before.items, *before.body["output"]]


def _messages(fields: ResponseFields, said: InputMessages) -> tuple[Message, ...]:
    """A conversation that nobody speaks in (a warm-up) is one in which the user says nothing yet."""
    instructions = (Message.plain("system", fields.instructions),) if fields.instructions else ()
    messages = (*instructions, *said.messages)
    spoken = any(message.role != "system" for message in messages)
    return messages if spoken else (*messages, Message.plain("user", ""))


def _options(fields: ResponseFields, changed: Changes, limits: LimitSettings, tools: ToolSet) -> GenerationOptions:
    wants_logprobs = LOGPROBS in fields.include or bool(fields.top_logprobs)
    top = fields.top_logprobs or 0
    if top > limits.max_top_logprobs:
        message = f"top_logprobs is {top}; at most {limits.max_top_logprobs} are possible."
        raise InvalidRequest(message, param="top_logprobs")
    options = checked_options(
        fields,
        limits,
        max_tokens=fields.max_output_tokens,
        top_logprobs=top if wants_logprobs else None,
        shape=("text.format", _shape(changed.format or fields.text.format)),
    )
    return replace(
        options,
        tool_choice=tool_choice(fields.tool_choice, tools, fields.parallel_tool_calls),
        reasoning=_reasoning(fields.reasoning, changed.effort or fields.reasoning.effort),
    )


def _reasoning(asked: ResponseReasoning, effort: str | None) -> Reasoning:
    enabled = asked.enabled
    if effort is not None and enabled is None:
        enabled = effort != _NO_EFFORT
    return Reasoning(enabled, None if effort == _NO_EFFORT else effort, asked.max_tokens)


def _shape(form: dict[str, Any] | None) -> Shape | None:
    match form:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return AnyJson()
        case {"type": "json_schema", "schema": dict(schema)}:
            return JsonSchema(schema, flag(form, "strict", "text.format"), "text.format")
    raise InvalidRequest(
        f"text.format must be of type text, json_object, or json_schema with a schema, not {shown(form)}.",
        param="text.format",
    )
