"""The tools of a Responses request: flat functions, namespaces, custom tools, and those that only OpenAI runs. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Declared:
    """How the client declared a tool that the model knows by another name or in another form."""

    name: str
    namespace: str | None = None
    custom: bool = False


@dataclass(frozen=True, slots=True)
class ToolSet:
    """`declared`: by the name that the model calls. `dropped`: the types of tools that nothing here can run."""

    tools: tuple[Tool, ...]
    declared: dict[str, Declared]
    dropped: tuple[str, ...] = ()


def tool_set(raw: list[Any]) -> ToolSet:
    """Raises InvalidRequest for a tool without a name, or with a name that another has."""
    tools: dict[str, Tool] = {}
    declared: dict[str, Declared] = {}
    dropped: dict[str, None] = {}

    def add(item: dict[str, Any], where: str, namespace: str | None) -> None:
        name = _name(item, where)
        spoken = name if namespace is None or name not in tools else f"{namespace}__{name}"
        if spoken in tools:
            raise InvalidRequest(f"{where}.name is {shown(name)}, as that of another tool.", param=f"{where}.name")
        custom = item.get("type") == "custom"
        tools[spoken] = _custom(item, spoken) if custom else _function(item, spoken, where)
        declared[spoken] = Declared(name, namespace, custom)

    for index, item in enumerate(raw):
        where = f"tools.{index}"
        if not isinstance(item, dict):
            raise InvalidRequest(f"{where} must be an object, not {shown(item)}.", param=where)
        match item.get("type"):
            case "function" | "custom":
                add(item, where, None)
            case "namespace":
                inner = item.get("tools")
                for position, tool in enumerate(inner if isinstance(inner, list) else ()):
                    if isinstance(tool, dict) and tool.get("type") in ("function", "custom"):
                        add(tool, f"{where}.tools.{position}", _name(item, where))
            case str() as kind:
                dropped[f"tools.{kind}"] = None
            case other:
                raise InvalidRequest(f"{where}.type must be a string, not {shown(other)}.", param=f"{where}.type")
    return ToolSet(tuple(tools.values()), declared, tuple(dropped))


def tool_choice(raw: Any, tools: ToolSet, parallel: bool) -> ToolChoice:
    """Raises InvalidRequest when it names what was not declared, UnsupportedField when nothing here can run it."""
    match raw:
        case None | "auto":
            return ToolChoice(parallel=parallel)
        case "none" | "required":
            if raw == "required" and not tools.tools:
                raise InvalidRequest("tool_choice is required, and there are no tools.", param="tool_choice")
            return ToolChoice(raw, parallel=parallel)
        case {"type": "function" | "custom", "name": str()}:
            return ToolChoice("required", (_spoken(raw, tools),), parallel)
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
    for spoken, known in tools.declared.items():
        if known.name == asked.get("name") and asked.get("namespace") in (None, known.namespace):
            return spoken
    raise InvalidRequest(
        f"tool_choice names {shown(asked.get('name'))}, which is not among the tools.", param="tool_choice"
    )


def _name(item: dict[str, Any], where: str) -> str:
    name = item.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{where}.name must be a string that is not empty, not {shown(name)}.", param=where)
    return name


def _function(item: dict[str, Any], name: str, where: str) -> Tool:
    parameters = item.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        message = f"{where}.parameters must be an object, not {shown(parameters)}."
        raise InvalidRequest(message, param=f"{where}.parameters")
    return Tool(name, _description(item), parameters, item.get("strict") is True)


def _custom(item: dict[str, Any], name: str) -> Tool:
    """With its grammar, where it has one, told to the model in words."""
    described = _description(item)
    form = item.get("format")
    if isinstance(form, dict) and isinstance(form.get("definition"), str):
        described += f"\n\nThe input follows this {form.get('syntax', '')} grammar:\n{form['definition']}"
    return Tool(name, described.strip(), _FREE_TEXT)


def _description(item: dict[str, Any]) -> str:
    described = item.get("description")
    return described if isinstance(described, str) else ""
