"""What every dialect asks of the declaration of a tool and of a call in a history, whatever it calls them. Pure."""

from __future__ import annotations

import json
from collections.abc import Sized
from typing import Any

from server.api.wire import shown
from server.errors import InvalidRequest
from server.settings.types import LimitSettings

_NAME_CHARS = 256


def check_count(tools: Sized, limits: LimitSettings, param: str = "tools") -> None:
    """Raises InvalidRequest for more than `limits.max_tools`."""
    if len(tools) > limits.max_tools:
        message = f"{param} has {len(tools)} entries; at most {limits.max_tools} are possible."
        raise InvalidRequest(message, param=param)


def tool_name(name: Any, where: str) -> str:
    """Raises InvalidRequest unless it is one that a model can be told."""
    if not isinstance(name, str) or not name or len(name) > _NAME_CHARS or not name.isprintable():
        message = f"{where} must be a name of 1 to {_NAME_CHARS} printable characters, not {shown(name)}."
        raise InvalidRequest(message, param=where)
    return name


def described(tool: dict[str, Any], where: str) -> str:
    """Its description, empty when there is none. Raises InvalidRequest."""
    return _optional(tool, "description", str, where) or ""


def flag(holder: dict[str, Any], key: str, where: str) -> bool:
    """holder[key], false when absent. Raises InvalidRequest when it is no boolean."""
    return bool(_optional(holder, key, bool, where))


def schema(tool: dict[str, Any], key: str, where: str) -> dict[str, Any] | None:
    """tool[key], a JSON Schema that is looked at by whoever enforces it. Raises InvalidRequest."""
    given = tool.get(key)
    if given is not None and not isinstance(given, dict):
        raise InvalidRequest(f"{where}.{key} must be a JSON Schema, not {shown(given)}.", param=f"{where}.{key}")
    return given


def arguments_text(given: Any, where: str) -> str:
    """Of a call in a history: JSON text. Some clients send an object, and nothing where there are no arguments.

    Raises InvalidRequest.
    """
    if isinstance(given, dict):
        return json.dumps(given, ensure_ascii=False)
    if given is not None and not isinstance(given, str):
        raise InvalidRequest(f"{where} must be a string, not {shown(given)}.", param=where)
    return given if given and given.strip() else "{}"


def _optional(holder: dict[str, Any], key: str, kind: type, where: str) -> Any:
    value = holder.get(key)
    if value is not None and type(value) is not kind:
        word = "a string" if kind is str else "a boolean"
        raise InvalidRequest(f"{where}.{key} must be {word}, not {shown(value)}.", param=f"{where}.{key}")
    return value
