"""The tools of a Responses request: flat functions, namespaces, custom tools, and those that only OpenAI runs. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from server.api.fields import unread
from server.api.tool_checks import described, flag, schema, tool_name
from server.api.wire import shown
from server.chat.tools import Tool, ToolChoice
from server.errors import InvalidRequest, UnsupportedField

# A custom tool takes free text; the model sees a function of one string.
_FREE_TEXT: dict[str, Any] = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
# Tools are offered at once, whether they may be loaded later or not, and to nobody but the model.
_KEYS = ("type", "name", "description", "parameters", "strict", "format", "defer_loading", "allowed_callers")


@dataclass(frozen=True, slots=True)
class Declared:
    """How the client declared a tool that the model knows by another name or in another form."""

    name: str
    namespace: str | None = None
    custom: bool = False


@dataclass(frozen=True, slots=True)
class ToolSet:
    """`declared`: by the name that the model calls. `dropped`: names of what has no effect, tools that nothing here can
    run and keys of the others."""

    tools: tuple[Tool, ...]
    declared: dict[str, Declared]
    dropped: tuple[str, ...] = ()


def tool_set(raw: list[Any], later: Iterable[tuple[str, Any]] = ()) -> ToolSet:
    """`later`: tools that the conversation brought, with their places; one that is declared already is no second one.

    Raises InvalidRequest for a tool without a name, or with a name that another has.
    """
    tools: dict[str, Tool] = {}
    declared: dict[str, Declared] = {}
    dropped: dict[str, None] = {}
    read: list[dict[str, Any]] = []

    def add(item: dict[str, Any], where: str, namespace: str | None, *, late: bool) -> None:
        name = tool_name(item.get("name"), f"{where}.name")
        if late and any((known.name, known.namespace) == (name, namespace) for known in declared.values()):
            return
        spoken = name if namespace is None or name not in tools else f"{namespace}__{name}"
        if spoken in tools:
            raise InvalidRequest(f"{where}.name is {shown(name)}, as that of another tool.", param=f"{where}.name")
        custom = item.get("type") == "custom"
        tools[spoken] = _custom(item, spoken, where) if custom else _function(item, spoken, where)
        declared[spoken] = Declared(name, namespace, custom)

    first = [(f"tools.{index}", item) for index, item in enumerate(raw)]
    for position, (where, item) in enumerate([*first, *later]):
        late = position >= len(first)
        if not isinstance(item, dict):
            raise InvalidRequest(f"{where} must be an object, not {shown(item)}.", param=where)
        match item.get("type"):
            case "function" | "custom":
                read.append(item)
                add(item, where, None, late=late)
            case "namespace":
                inner = item.get("tools")
                for place, tool in enumerate(inner if isinstance(inner, list) else ()):
                    if isinstance(tool, dict) and tool.get("type") in ("function", "custom"):
                        read.append(tool)
                        add(tool, f"{where}.tools.{place}", tool_name(item.get("name"), f"{where}.name"), late=late)
            case str() as kind:
                dropped[f"tools.{kind}"] = None
            case other:
                raise InvalidRequest(f"{where}.type must be a string, not {shown(other)}.", param=f"{where}.type")
    return ToolSet(tuple(tools.values()), declared, (*dropped, *unread(read, _KEYS, "tools")))


def tool_choice(raw: Any, tools: ToolSet, parallel: bool) -> ToolChoice:
    """Raises InvalidRequest when it names what was not declared, UnsupportedField when nothing here can run it."""
    match raw:
        case None | "auto":
            return ToolChoice(parallel=parallel)
        case "none" | "required":
            if raw == "required" and not tools.tools:
                raise InvalidRequest("tool_choice is required, and there are no tools.", param="tool_choice")
            return ToolChoice(raw, parallel=parallel)
        # The second as in chat completions.
        case {"type": "function" | "custom", "name": str()} | {"type": "function", "function": {"name": str()}}:
            return ToolChoice("required", (_spoken(raw, tools),), parallel)
        case {"type": "function" | "custom"}:
            raise InvalidRequest("tool_choice.name must be the name of a tool.", param="tool_choice.name")
        case {"type": "allowed_tools", "tools": list(listed)}:
            names = tuple(_spoken(tool, tools) for tool in listed if isinstance(tool, dict) and "name" in tool)
            mode = raw.get("mode", "auto")
            if mode not in ("auto", "required"):
                message = f"tool_choice.mode must be auto or required, not {shown(mode)}."
                raise InvalidRequest(message, param="tool_choice.mode")
            return ToolChoice(mode, names, parallel) if names else ToolChoice("none")
        case {"type": str(kind)}:
            message = f"tool_choice asks for {shown(kind)}, which this server does not run."
            raise UnsupportedField(message, param="tool_choice")
    raise InvalidRequest(
        f"tool_choice must be none, auto, required or an object, not {shown(raw)}.", param="tool_choice"
    )


def _spoken(asked: dict[str, Any], tools: ToolSet) -> str:
    inner = asked.get("function")
    name = inner.get("name") if isinstance(inner, dict) and "name" not in asked else asked.get("name")
    for spoken, known in tools.declared.items():
        if known.name == name and asked.get("namespace") in (None, known.namespace):
            return spoken
    raise InvalidRequest(f"tool_choice names {shown(name)}, which is not among the tools.", param="tool_choice")


def _function(item: dict[str, Any], name: str, where: str) -> Tool:
    return Tool(name, described(item, where), schema(item, "parameters", where), flag(item, "strict", where))


def _custom(item: dict[str, Any], name: str, where: str) -> Tool:
    """With its grammar, where it has one, told to the model in words."""
    told = described(item, where)
    form = item.get("format")
    if isinstance(form, dict) and isinstance(form.get("definition"), str):
        told += f"\n\nThe input follows this {form.get('syntax', '')} grammar:\n{form['definition']}"
    return Tool(name, told.strip(), _FREE_TEXT)
