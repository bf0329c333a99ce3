"""What of a tool's schema the grammar of its calls does not hold, where calls are not written as JSON. Pure.

In JSON a schema holds by itself. Gemma's values have a grammar of their own, and arguments between tags are bare text:
those hold types, names and choices, and this says which keywords they do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from server.chat.formats.format import Arguments
from server.chat.formats.gemma_values import DEEPEST, holds
from server.chat.formats.schema import ToolSchema

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
            yield from _in_gemma(ToolSchema(schema))
        case "bare":
            yield from _between_tags(schema)


def _in_gemma(schema: ToolSchema, place: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """As the grammar goes through it: a schema that holds itself is held as deep as the grammar is."""
    for key in schema.value:
        if key not in _SAYINGS and (depth > DEEPEST or not holds(schema, key)):
            yield place or "/", key
    if depth > DEEPEST:
        return
    for name in schema.names:
        if (member := schema.of(name)) is not None:
            yield from _in_gemma(member, f"{place}/properties/{name}", depth + 1)
    if not schema.names and not schema.is_closed and "additionalProperties" in schema.value:
        yield from _in_gemma(schema.others, f"{place}/additionalProperties", depth + 1)
    if "items" in schema.value:
        yield from _in_gemma(schema.items, f"{place}/items", depth + 1)
    for index, branch in enumerate(schema.branches):
        yield from _in_gemma(branch, f"{place}/anyOf/{index}", depth + 1)


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


def _is_closed(key: str, value: Any) -> bool:
    """Members that are not listed are never written, whether they may be or not."""
    return key == "additionalProperties" and isinstance(value, bool)


def _is_choice_of_types(key: str, value: Any) -> bool:
    """Such as a string or null, which is what schemas of optional arguments say."""
    return key == "anyOf" and isinstance(value, list) and all(map(_is_scalar, value))


def _is_scalar(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _SCALARS and part.keys() <= {"type", *_SAYINGS}
