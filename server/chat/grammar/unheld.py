"""What of a tool's schema the grammar of its calls does not hold, where calls are not written as JSON. Pure.

In JSON a schema holds by itself. Gemma's values have a grammar of their own, and arguments between tags are bare text:
those hold types, names and choices, and this says which keywords they do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from server.chat.formats.format import Arguments
from server.chat.formats.schema import ToolSchema
from server.chat.grammar.schemas import parts

_DEEPEST = 4
# Keywords that promise nothing of a value.
_SAYINGS = frozenset({
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "$schema", "$id", "$comment", "$anchor", "$defs", "definitions", "components", "schemas",
})  # fmt: skip
_HELD = _SAYINGS | {"type", "properties", "required", "items", "enum", "const", "nullable", "$ref"}
_SCALARS = frozenset({"string", "number", "integer", "boolean", "null"})


def unheld(arguments: Arguments, schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """JSON pointers, each with a keyword that stands there and is not enforced."""
    match arguments:
        case "gemma":
            yield from _in_gemma(schema)
        case "bare":
            yield from _between_tags(schema)


def _in_gemma(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for place, part in parts(schema):
        deep = place.count("/properties/") + place.count("/items") > _DEEPEST
        for key, value in part.items():
            if key in _SAYINGS:
                continue
            held = _is_list_of_scalars(value) if key == "enum" else key in _HELD
            if deep or not (held or _is_closed(key, value) or _is_choice_of_types(key, value)):
                yield place or "/", key


def _between_tags(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in schema.items():
        if not (key in _HELD or _is_closed(key, value)):
            yield "/", key
    root = ToolSchema(schema)
    for name in root.names:
        argument = root.of(name) or ToolSchema({})
        # Other values are JSON, which their schema holds.
        bare = "string" in argument.types or (argument.types <= _SCALARS and not argument.choices)
        for key, value in argument.value.items() if bare else ():
            if not (key in _HELD or _is_choice_of_types(key, value)):
                yield f"/properties/{name}", key


def _is_list_of_scalars(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(item, list | dict) for item in value)


def _is_closed(key: str, value: Any) -> bool:
    """Members that are not listed are never written, whether they may be or not."""
    return key == "additionalProperties" and isinstance(value, bool)


def _is_choice_of_types(key: str, value: Any) -> bool:
    """Such as a string or null, which is what schemas of optional arguments say."""
    return key == "anyOf" and isinstance(value, list) and all(map(_is_scalar, value))


def _is_scalar(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _SCALARS and part.keys() <= {"type", *_SAYINGS}
