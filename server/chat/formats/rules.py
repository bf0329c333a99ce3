"""Rules for the calls of an answer, from which the formats put their grammars together. Pure text.

A tool's own schema holds its arguments. Keywords that llguidance cannot enforce are skipped unless the tool is strict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from server.chat.formats.schema import ToolSchema
from server.chat.grammar import lark
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool, ToolChoice

# With any of these a schema says for itself what else an object may hold.
_OPEN = ("additionalProperties", "patternProperties", "$ref", "anyOf", "oneOf", "allOf", "not", "if")
# Named parts that references of a schema lead to.
_DEFINITIONS = ("$defs", "definitions")
ANY_TEXT = lark.regex(r"(?s:.*)")
NAME = lark.regex(r"[A-Za-z_][A-Za-z0-9_.\-]{0,63}")


def parameters(tool: Tool) -> dict[str, Any]:
    """The tool's schema as that of an object. Where it lists properties and does not say that there are others, there
    are none, or a model that has lost its way would make some up."""
    schema = {"type": "object", **(tool.parameters or {})}
    if schema.get("properties") and not any(key in schema for key in _OPEN):
        schema["additionalProperties"] = False
    return schema


def json_arguments(tool: Tool) -> str:
    """A JSON object of the tool's arguments, as a rule's body."""
    return lark.json_schema(parameters(tool), lenient=not tool.strict)


def json_value(tool: Tool, value: Any) -> str:
    """JSON of one of the tool's arguments, whose schema is `value`."""
    root = tool.parameters or {}
    definitions = {key: root[key] for key in _DEFINITIONS if key in root}
    schema = {**definitions, **value} if isinstance(value, dict) else {}
    return lark.json_schema(schema, lenient=not tool.strict)


def one_or_more(call: str, choice: ToolChoice, between: str = "") -> str:
    """Calls as the choice has them, with the literal `between` from one to the next."""
    if not choice.parallel:
        return call
    return f"{call} ({lark.literal(between)} {call})*" if between else f"{call}+"


def grammar(rules: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name}: {body}" for name, body in rules)


def up_to(name: str, end: str, vocabulary: Vocabulary, text: str = ANY_TEXT) -> tuple[str, list[tuple[str, str]]]:
    """A term for `text`, a regex, with `end` behind it, and the rules that it needs."""
    if vocabulary.marker(end) is not None:
        return f"{name} {lark.marker(vocabulary, end)}", [(name, text)]
    return name, [(f"{name}[suffix={lark.literal(end)}]", text)]


Members = list[tuple[str, bool]]


def members(tool: Tool, item: Callable[[str, ToolSchema], str]) -> Members:
    """For each of the tool's parameters, in their order, the term `item` makes of it and whether it must be there."""
    schema = ToolSchema(tool.parameters or {})
    required = schema.required
    return [(item(name, schema.of(name) or ToolSchema({})), name in required) for name in schema.names]


def in_order(name: str, listed: Members, comma: str) -> list[tuple[str, str]]:
    """Rules, the first of them `name`, for the members of an object with a comma between any two that are there."""
    if not listed:
        return [(name, '""')]
    rules = []
    for index, (term, needed) in enumerate(listed):
        last = index == len(listed) - 1
        first, more = (name if index == 0 else f"{name}_{index}"), f"{name}_more_{index}"
        behind = "" if last else f" {name}_more_{index + 1}"
        skipped = '""' if last else f"{name}_{index + 1}"
        rules.append((first, f"{term}{behind}" + ("" if needed else f" | {skipped}")))
        if index:
            written = f"{lark.literal(comma)} {term}"
            rules.append((more, f"{written}{behind}" if needed else f"({written})?{behind}"))
    return rules
