"""Whether a model's tool calls are valid: one request a tool, each answered by a call that its declaration allows.

Strict: the name is declared, the arguments are a JSON object with every required property and no other than the
declared ones, of the declared type and among the declared values. What is called for is not judged, only the form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

DeclaredTool = Mapping[str, Any]
# A call as (name, arguments): arguments as an object, or as the JSON text of one.
WrittenCall = tuple[str, Any]
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,),
}  # fmt: skip


class ToolCalls(msgspec.Struct, frozen=True):
    """Of `asked` requests, `called` were answered with a call, and `valid` with valid calls only."""

    asked: int
    called: int
    valid: int

    def __str__(self) -> str:
        return f"{self.valid} of {self.asked} ({self.called} replies had a call)"


def _tool(name: str, about: str, properties: Mapping[str, Any], required: Sequence[str]) -> DeclaredTool:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


TOOLS = (
    _tool(
        "get_weather",
        "The weather of a city on a day.",
        {"city": {"type": "string"}, "day": {"type": "string", "enum": ["today", "tomorrow"]}},
        ["city", "day"],
    ),
    _tool(
        "convert_length",
        "Converts a length between units.",
        {
            "value": {"type": "number"},
            "from_unit": {"type": "string", "enum": ["m", "km", "ft", "mi"]},
            "to_unit": {"type": "string", "enum": ["m", "km", "ft", "mi"]},
        },
        ["value", "from_unit", "to_unit"],
    ),
    _tool(
        "set_timer",
        "Starts a timer.",
        {"minutes": {"type": "integer"}, "label": {"type": "string"}, "loud": {"type": "boolean"}},
        ["minutes"],
    ),
    _tool(
        "search_files",
        "Finds files by a pattern below some folders.",
        {"pattern": {"type": "string"}, "folders": {"type": "array"}, "limit": {"type": "integer"}},
        ["pattern", "folders"],
    ),
)
REQUESTS = (
    "What will the weather be in Lisbon tomorrow?",
    "Is it raining in Bergen today?",
    "How many feet are 12.5 metres?",
    "Convert 26 miles to kilometres.",
    "Set a timer for 9 minutes and call it \"tea\".",
    "Wake me in 25 minutes, loudly.",
    "Find every Python file below src and tests.",
    "Which files named report.pdf are below /home and /srv? At most five.",
)  # fmt: skip


def measure(ask: Callable[[str, Sequence[DeclaredTool]], Sequence[WrittenCall]]) -> ToolCalls:
    """`ask` gives the calls in the reply to a request, with these tools declared."""
    replies = [list(ask(request, TOOLS)) for request in REQUESTS]
    valid = sum(bool(calls) and all(is_valid(*call, TOOLS) for call in calls) for calls in replies)
    return ToolCalls(len(replies), sum(map(bool, replies)), valid)


def is_valid(name: str, arguments: Any, tools: Sequence[DeclaredTool]) -> bool:
    declared = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    if name not in declared:
        return False
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return False
    if not isinstance(arguments, dict):
        return False
    properties = declared[name]["properties"]
    return set(declared[name]["required"]) <= arguments.keys() <= properties.keys() and all(
        _fits(value, properties[key]) for key, value in arguments.items()
    )


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    kind = schema["type"]
    # In Python a truth is a number, in JSON it is none.
    right = isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
    return right and value in schema.get("enum", [value])
