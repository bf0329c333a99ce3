"""The tools of a Messages request, of its field and of the conversation, and the choice among them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from server.api.fields import unread
from server.api.tool_checks import described, flag, schema, tool_name
from server.api.wire import shown
from server.chat.tools import Tool, ToolChoice
from server.errors import InvalidRequest

# Tools are offered at once, whether they may be loaded later or not, and calls come in pieces anyway.
_KEYS = (
    "type", "name", "description", "input_schema", "strict", "cache_control", "defer_loading", "allowed_callers",
    "eager_input_streaming",
)  # fmt: skip


def asked_tools(
    raw: list[Any], changes: Iterable[tuple[str, dict[str, Any]]]
) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The tools that a client runs by their schema, as they stand after all `changes`, and names of what is left out.

    Raises InvalidRequest.
    """
    tools: dict[str, Tool] = {}
    dropped: dict[str, None] = {}
    for index, item in enumerate(raw):
        tool = _client_tool(item, f"tools.{index}", dropped)
        if tool is not None and tool.name in tools:
            where = f"tools.{index}.name"
            raise InvalidRequest(f"{where} is {shown(tool.name)}, as that of another tool.", param=where)
        if tool is not None:
            tools[tool.name] = tool
    known = dict(tools)
    for where, block in changes:
        _change(block, where, tools, known, dropped)
    return tuple(tools.values()), (*dropped, *unread(_own(raw), _KEYS, "tools"))


def tool_choice(asked: dict[str, Any] | None, tools: tuple[Tool, ...]) -> ToolChoice:
    asked = {"type": "auto"} if asked is None else asked
    parallel = not flag(asked, "disable_parallel_tool_use", "tool_choice")
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


def _change(
    block: dict[str, Any], where: str, tools: dict[str, Tool], known: dict[str, Tool], dropped: dict[str, None]
) -> None:
    """`known`: all that were declared so far, the removed ones too. What refers to a tool that is none of them is left
    out: it is one that Anthropic runs."""
    change, asked = block["type"], block.get("tool")
    if not isinstance(asked, dict):
        raise InvalidRequest(f"{where}.tool must be an object, not {shown(asked)}.", param=f"{where}.tool")
    if change == "tool_addition" and asked.get("type") == "tool_definition":
        tool = _client_tool(asked.get("definition"), f"{where}.tool.definition", dropped)
    else:
        name = asked.get("name")
        tool = known.get(name) if asked.get("type") == "tool_reference" and isinstance(name, str) else None
        if tool is None:
            dropped[f"content.{change}"] = None
    if tool is None:
        return
    if change == "tool_removal":
        tools.pop(tool.name, None)
    else:
        tools[tool.name] = known[tool.name] = tool


def _own(raw: list[Any]) -> Iterator[dict[str, Any]]:
    yield from (item for item in raw if item.get("type") in (None, "custom"))


def _client_tool(item: Any, where: str, dropped: dict[str, None]) -> Tool | None:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(item)}.", param=where)
    kind = item.get("type")
    if kind == "function":
        message = f"{where} is declared as for chat completions; here a tool is its name, description and input_schema."
        raise InvalidRequest(message, param=f"{where}.type")
    if isinstance(kind, str) and kind != "custom":
        dropped[f"tools.{kind}"] = None
        return None
    return Tool(
        tool_name(item.get("name"), f"{where}.name"),
        described(item, where),
        schema(item, "input_schema", where),
        flag(item, "strict", where),
    )
