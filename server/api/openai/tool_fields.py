"""The tools of a request and the choice among them, OpenAI's present and former fields for both. Pure. HTTP process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import FailFast, Field

from server.api.fields import unread
from server.api.tool_checks import check_count, described, flag, schema, tool_name
from server.api.wire import Wire, shown
from server.chat.tools import Tool, ToolChoice
from server.errors import InvalidRequest, UnsupportedField
from server.settings.types import LimitSettings

_TOOL_KEYS = frozenset({"type", "function", "cache_control"})
_FUNCTION_KEYS = frozenset({"name", "description", "parameters", "strict"})
# `any` is what Mistral calls required.
_MODES = {"none": "none", "auto": "auto", "required": "required", "any": "required"}


class ToolFields(Wire):
    tools: Annotated[list[Any], FailFast()] = Field([])
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    functions: Annotated[list[Any], FailFast()] = Field([])
    function_call: Any = None


@dataclass(frozen=True, slots=True)
class AskedTools:
    """`legacy`: the request speaks of functions, and so must the answer. `ignored`: names of keys."""

    tools: tuple[Tool, ...]
    choice: ToolChoice
    legacy: bool
    ignored: tuple[str, ...]


def asked_tools(fields: ToolFields, limits: LimitSettings) -> AskedTools:
    legacy = bool(fields.functions) or (fields.function_call is not None and not fields.tools)
    if fields.functions and fields.tools:
        raise InvalidRequest("tools and functions are one thing; give tools only.", param="functions")
    name, given = ("functions", fields.functions) if legacy else ("tools", fields.tools)
    check_count(given, limits, name)
    if legacy:
        tools = tuple(function_tool(item, f"functions.{index}") for index, item in enumerate(given))
        choice = _function_call(fields.function_call, tools)
        ignored = unread(given, _FUNCTION_KEYS, "functions")
    else:
        tools = tuple(_tool(item, f"tools.{index}") for index, item in enumerate(given))
        choice = _tool_choice(fields.tool_choice, tools, parallel=fields.parallel_tool_calls)
        ignored = unread(given, _TOOL_KEYS, "tools")
        ignored += unread([item["function"] for item in given], _FUNCTION_KEYS, "tools.function")
    return AskedTools(_distinct(tools, name), choice, legacy, ignored)


def function_tool(function: Any, where: str) -> Tool:
    """A function's declaration. `parameters` may be missing."""
    if not isinstance(function, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(function)}.", param=where)
    return Tool(
        tool_name(function.get("name"), f"{where}.name"),
        described(function, where),
        schema(function, "parameters", where),
        flag(function, "strict", where),
    )


def _tool(item: Any, where: str) -> Tool:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(item)}.", param=where)
    kind = item.get("type", "function")
    if kind != "function":
        message = f"{where} is of type {shown(kind)}, which is not supported: tools are functions."
        raise UnsupportedField(message, param=f"{where}.type")
    return function_tool(item.get("function"), f"{where}.function")


def _distinct(tools: tuple[Tool, ...], param: str) -> tuple[Tool, ...]:
    """A tool that is given twice is one; two of one name cannot be told apart."""
    known: dict[str, Tool] = {}
    for tool in tools:
        if known.setdefault(tool.name, tool) != tool:
            raise InvalidRequest(f"Two different tools are called {shown(tool.name)}.", param=param)
    return tuple(known.values())


def _tool_choice(given: Any, tools: tuple[Tool, ...], *, parallel: bool) -> ToolChoice:
    where = "tool_choice"
    if given is None:
        return ToolChoice(parallel=parallel)
    if isinstance(given, dict):
        match given.get("type"):
            case "function":
                name = _named(given, where)
                return ToolChoice("required", _known((name,), tools, where), parallel=False)
            case "allowed_tools":
                return _allowed(given.get("allowed_tools"), tools, f"{where}.allowed_tools", parallel=parallel)
        given = given.get("type")
    if not isinstance(given, str) or given not in _MODES:
        kinds = f"{', '.join(_MODES)}, a function or allowed_tools"
        raise InvalidRequest(f"{where} must be {kinds}, not {shown(given)}.", param=where)
    mode = _MODES[given]
    if mode == "required" and not tools:
        raise InvalidRequest("tool_choice asks for a call, and there are no tools.", param=where)
    return ToolChoice("required" if mode == "required" else "none" if mode == "none" else "auto", (), parallel)


def _allowed(given: Any, tools: tuple[Tool, ...], where: str, *, parallel: bool) -> ToolChoice:
    """{"mode": "auto" or "required", "tools": [{"type": "function", "function": {"name": ...}}]}."""
    if not isinstance(given, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(given)}.", param=where)
    mode, listed = given.get("mode"), given.get("tools")
    if mode not in ("auto", "required"):
        raise InvalidRequest(f"{where}.mode must be auto or required, not {shown(mode)}.", param=f"{where}.mode")
    if not isinstance(listed, list) or not listed:
        raise InvalidRequest(f"{where}.tools must be a list that is not empty.", param=f"{where}.tools")
    names = tuple(_named(item, f"{where}.tools.{index}") for index, item in enumerate(listed))
    return ToolChoice(mode, _known(names, tools, f"{where}.tools"), parallel)


def _function_call(given: Any, tools: tuple[Tool, ...]) -> ToolChoice:
    """Of the former API: none, auto or {"name": ...}; it knew one call at most."""
    where = "function_call"
    if isinstance(given, dict):
        name = tool_name(given.get("name"), f"{where}.name")
        return ToolChoice("required", _known((name,), tools, where), parallel=False)
    if given is None or given == "auto":
        return ToolChoice(parallel=False)
    if given == "none":
        return ToolChoice("none", parallel=False)
    raise InvalidRequest(f"{where} must be none, auto or a function, not {shown(given)}.", param=where)


def _named(item: Any, where: str) -> str:
    """The name in {"type": "function", "function": {"name": ...}}; some clients put it one level up."""
    if not isinstance(item, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(item)}.", param=where)
    function = item.get("function")
    if isinstance(function, dict):
        return tool_name(function.get("name"), f"{where}.function.name")
    return tool_name(item.get("name"), f"{where}.name")


def _known(names: tuple[str, ...], tools: tuple[Tool, ...], where: str) -> tuple[str, ...]:
    offered = {tool.name for tool in tools}
    for name in names:
        if name not in offered:
            raise InvalidRequest(f"{where} names {shown(name)}, which is not among the tools.", param=where)
    return names
