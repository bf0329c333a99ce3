"""A message as chat templates see it: Hugging Face's names for its parts, and every string of it within reach. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from server.chat.parts import Message, ReasoningPart, ToolCallPart, ToolResultPart


def template_values(message: Message, change: Callable[[str], str]) -> dict[str, Any]:
    """With `change` applied to every string that came from outside, as the template will write it: parts that it gets
    joined are joined, and JSON is read, so that nothing hides between two parts or behind an escape."""
    values: dict[str, Any] = {"content": message.text}
    calls = []
    for part in message.parts:
        match part:
            case ReasoningPart():
                values["reasoning_content"] = values.get("reasoning_content", "") + part.text
            case ToolCallPart():
                function = {"name": part.name, "arguments": _arguments(part.arguments)}
                calls.append({"id": part.id, "type": "function", "function": function})
            case ToolResultPart():
                values["tool_call_id"] = part.call_id
                if part.name is not None:
                    values["name"] = part.name
    changed: dict[str, Any] = _changed(values | ({"tool_calls": calls} if calls else {}), change)
    return {"role": message.role, **changed}


def strings_in(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings_in(inner)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _changed(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_changed(inner, change) for inner in value]
    return value


def _arguments(text: str) -> Any:
    """As text when they are not a JSON object: templates write a string as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
