"""POST /v1/messages, inwards: body -> conversation and options. Pure functions. HTTP process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from server.api.anthropic.blocks import conversation
from server.api.anthropic.table import MESSAGES
from server.api.fields import screen
from server.api.markers import notes, without_markers
from server.api.sampling import SamplingFields, TextList, checked_options, model_name
from server.api.wire import Whole, Wire, shown, validated
from server.chat.conversation import Conversation, GenerationOptions, Reasoning
from server.chat.shapes import JsonSchema, Shape
from server.chat.tools import Tool, ToolChoice
from server.errors import InvalidRequest
from server.http.body import json_object
from server.settings.types import LimitSettings


class ThinkingFields(Wire):
    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[Whole, Field(ge=0)] | None = None
    display: Literal["summarized", "omitted"] | None = None


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
    fields = validated(MessageFields, screened.values)
    said = conversation(fields.system, fields.messages, omit_images=limits.images == "omit")
    messages, markers = without_markers(said.messages)
    tools, dropped = _tools(fields.tools)
    reasoning = _reasoning(fields)
    options = checked_options(
        fields.model_copy(update={"stop": fields.stop_sequences}),
        limits,
        max_tokens=fields.max_tokens,
        top_logprobs=None,
    )
    return MessagesCall(
        model=model_name(fields.model),
        conversation=Conversation(messages, tools, reasoning=reasoning),
        options=replace(
            options,
            shape=_shape(fields.output_config.format),
            tool_choice=_tool_choice(fields.tool_choice, tools),
            reasoning=reasoning,
        ),
        stream=fields.stream,
        progress=fields.return_progress,
        shows_thinking=fields.thinking.display != "omitted",
        cache_salt=fields.cache_salt,
        keep_alive_s=fields.keep_alive,
        notes=notes(markers),
        headers=screened.headers(*markers, *said.dropped, *dropped),
    )


def _reasoning(fields: MessageFields) -> Reasoning:
    if fields.thinking.type == "disabled":
        return Reasoning(enabled=False)
    return Reasoning(True, fields.output_config.effort, fields.thinking.budget_tokens)


def _tools(raw: list[Any]) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The tools that a client runs by their schema, and the types of the others."""
    tools: dict[str, Tool] = {}
    dropped: dict[str, None] = {}
    for index, item in enumerate(raw):
        where = f"tools.{index}"
        if not isinstance(item, dict):
            raise InvalidRequest(f"{where} must be an object, not {shown(item)}.", param=where)
        kind = item.get("type")
        if isinstance(kind, str) and kind != "custom":
            dropped[f"tools.{kind}"] = None
            continue
        tool = _tool(item, where)
        if tool.name in tools:
            raise InvalidRequest(f"{where}.name is {shown(tool.name)}, as that of another tool.", param=f"{where}.name")
        tools[tool.name] = tool
    return tuple(tools.values()), tuple(dropped)


def _tool(item: dict[str, Any], where: str) -> Tool:
    name, schema, described = item.get("name"), item.get("input_schema"), item.get("description")
    if not isinstance(name, str) or not name:
        message = f"{where}.name must be a string that is not empty, not {shown(name)}."
        raise InvalidRequest(message, param=f"{where}.name")
    if schema is not None and not isinstance(schema, dict):
        message = f"{where}.input_schema must be an object, not {shown(schema)}."
        raise InvalidRequest(message, param=f"{where}.input_schema")
    return Tool(name, described if isinstance(described, str) else "", schema, item.get("strict") is True)


def _tool_choice(asked: dict[str, Any] | None, tools: tuple[Tool, ...]) -> ToolChoice:
    asked = {"type": "auto"} if asked is None else asked
    parallel = asked.get("disable_parallel_tool_use") is not True
    match asked.get("type"):
        case "auto":
            return ToolChoice(parallel=parallel)
        case "none":
            return ToolChoice("none")
        case "any" if tools:
            return ToolChoice("required", parallel=parallel)
        case "tool" if any(tool.name == asked.get("name") for tool in tools):
            return ToolChoice("required", (asked["name"],), parallel)
        case "any" | "tool":
            raise InvalidRequest("tool_choice asks for a tool that is not among the tools.", param="tool_choice")
        case kind:
            message = f"tool_choice.type must be auto, any, tool or none, not {shown(kind)}."
            raise InvalidRequest(message, param="tool_choice.type")


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
