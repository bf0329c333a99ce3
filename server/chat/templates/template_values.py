"""A message as chat templates see it: Hugging Face's names for its parts, and every string of it within reach. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from msgspec.structs import replace

from server.chat.parts import Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from server.chat.templates.traits import Traits

_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")


def template_values(
    message: Message, change: Callable[[str], str], traits: Traits | None = None, *, arguments_as_text: bool = False
) -> dict[str, Any]:
    """With `change` applied to every string that came from outside, as the template will write it: parts that it gets
    joined are joined, and JSON is read, so that nothing hides between two parts or behind an escape."""
    traits = traits or Traits()
    # Results stand in a message of their own, or behind the calls that they answer.
    holds_results = traits.holds_results and message.role == "assistant"
    own = replace(message, parts=tuple(part for part in message.parts if isinstance(part, TextPart)))
    values: dict[str, Any] = {"content": own.text if holds_results else message.text}
    calls = []
    reasoning = ""
    for part in message.parts:
        match part:
            case ReasoningPart():
                reasoning += part.text
            case ToolCallPart():
                arguments = part.arguments or "{}" if arguments_as_text else _arguments(part.arguments)
                function = {"name": part.name, "arguments": arguments}
                calls.append({"id": _id(part.id, traits), "type": "function", "function": function})
            case ToolResultPart() if holds_results:
                values.setdefault("tool_responses", []).append({"name": part.name, "response": part.text})
            case ToolResultPart():
                values["tool_call_id"] = _id(part.call_id, traits)
                if part.name is not None:
                    values["name"] = part.name
    if reasoning:
        values["reasoning_content"] = reasoning
        if traits.thought_key is not None:
            values[traits.thought_key] = reasoning
            if calls and message.text:
                # Beside a call such a template has one place for both.
                values |= {traits.thought_key: f"{reasoning}\n\n{message.text}", "content": ""}
    changed: dict[str, Any] = changed_strings(values | ({"tool_calls": calls} if calls else {}), change)
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


def changed_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every string in it, keys too, as `change` makes it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): changed_strings(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [changed_strings(inner, change) for inner in value]
    return value


def _arguments(text: str) -> Any:
    """As text when they are not a JSON object: templates write a string as it is."""
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _id(call_id: str, traits: Traits) -> str:
    """As the template takes it; the same id is always put the same way, so that calls and results still meet."""
    if not traits.short_ids or _SHORT_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:9]
