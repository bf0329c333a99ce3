"""Input items that say nothing, and change what follows them: how to think, the form of an answer, more tools. Pure.

A history holds all of them that there have been; what they come to at its end is what the next answer is made with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.api.wire import shown
from server.errors import InvalidRequest

_TOOLS = ("additional_tools", "tool_search_output")


@dataclass(frozen=True, slots=True)
class Changes:
    """None where nothing was changed. `tools`: each with its place in the request."""

    effort: str | None = None
    format: dict[str, Any] | None = None
    tools: tuple[tuple[str, Any], ...] = ()


def changes(items: list[Any]) -> Changes:
    """Raises InvalidRequest that names the item."""
    effort, form = None, None
    tools: list[tuple[str, Any]] = []
    for index, item in enumerate(items):
        where = f"input.{index}"
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "configuration_update":
            effort = _inside(item, "reasoning", "effort", str, where) or effort
            form = _inside(item, "text", "format", dict, where) or form
        elif kind in _TOOLS:
            given = item.get("tools")
            if not isinstance(given, list):
                raise InvalidRequest(f"{where}.tools must be a list, not {shown(given)}.", param=f"{where}.tools")
            tools += [(f"{where}.tools.{place}", tool) for place, tool in enumerate(given)]
    return Changes(effort, form, tuple(tools))


def _inside(item: dict[str, Any], outer: str, inner: str, kind: type, where: str) -> Any:
    """item[outer][inner]; either may be absent."""
    holder = item.get(outer)
    if holder is None:
        return None
    value = holder.get(inner) if isinstance(holder, dict) else holder
    if value is not None and not (isinstance(holder, dict) and isinstance(value, kind)):
        word = "a string" if kind is str else "an object"
        path = f"{where}.{outer}.{inner}"
        raise InvalidRequest(f"{path} must be {word}, not {shown(value)}.", param=path)
    return value
