"""JSON Schemas as clients send them, made into what llguidance can hold an answer to. Text process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from server.chat.grammar import lark
from server.chat.grammar.checking import GrammarFault, check
from server.errors import InvalidRequest

Schema = dict[str, Any] | bool

# Where a schema has other schemas: below a name, in a list, or directly. `components` and `schemas` are OpenAPI's place
# for definitions, which its tools leave where it was.
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "schemas")
_IN_LIST = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_DIRECT = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "components")
# Those that llguidance enforces. All others are annotations, as JSON Schema has them, and promise nothing.
_FORMATS = frozenset({"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
# What is given up of a schema that is not strict and cannot be used, one after the other: what narrows a value, and of
# tools, which are never refused for their schemas, then what says which value it is at all.
_NARROWING: tuple[frozenset[str], ...] = (
    frozenset({"pattern", "format"}),
    frozenset({"patternProperties", "propertyNames", "multipleOf", "contentEncoding", "uniqueItems"}),
    frozenset({"minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    frozenset({"minItems", "maxItems", "minProperties", "maxProperties"}),
)
_MEANING: tuple[frozenset[str], ...] = (
    frozenset({"const", "enum"}),
    frozenset({"$ref", "allOf", "anyOf", "oneOf"}),
    frozenset({"type", "required", "additionalProperties"}),
)


def usable(
    schema: Schema, *, strict: bool, param: str, vocab_size: int, of_tool: bool = False
) -> tuple[Schema, list[str]]:
    """`schema` as a grammar can take it, and a line for each keyword of it that is not enforced.

    Raises:
        InvalidRequest: a strict one has a keyword that cannot be enforced; one that is neither strict nor `of_tool` is
            none: a type that does not exist, a reference to nothing.
    """
    if strict:
        return _strictly(schema, param, vocab_size)
    given_up: frozenset[str] = frozenset()
    for more in (frozenset[str](), *_NARROWING, *(_MEANING if of_tool else ())):
        given_up |= more
        candidate = _without(schema, given_up)
        try:
            warnings = check(f"start: {lark.json_schema(candidate, lenient=True)}", vocab_size)
        except GrammarFault as fault:
            reason = str(fault)
        else:
            notes = [f"{param}: not enforced: {warning}" for warning in warnings]
            lost = sorted(given_up & {key for _, part in parts(schema) for key in part})
            if lost:
                notes.append(f"{param}: not enforced: {', '.join(lost)}")
            return candidate, notes
    if not of_tool:
        raise InvalidRequest(f"{param}: {_with_place(reason, schema)}", param=param)
    return {"type": "object"}, [f"{param}: not enforced: {reason}"]


def _strictly(schema: Schema, param: str, vocab_size: int) -> tuple[Schema, list[str]]:
    candidate = _changed(schema, _without_annotation)
    try:
        check(f"start: {lark.json_schema(candidate)}", vocab_size)
    except GrammarFault as fault:
        raise InvalidRequest(f"{param}: {_with_place(str(fault), schema)}", param=param) from None
    formats = sorted({str(part["format"]) for _, part in parts(schema) if _is_annotation(part)})
    return candidate, [f"{param}: not enforced: format {', '.join(formats)}"] if formats else []


def _is_annotation(part: dict[str, Any]) -> bool:
    return isinstance(part.get("format"), str) and part["format"] not in _FORMATS


def _without_annotation(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "format"} if _is_annotation(part) else part


def _with_place(reason: str, schema: Schema) -> str:
    """The reason, with the keyword that it is about and the pointer to the first part that has it."""
    for place, part in parts(schema):
        for key, value in part.items():
            if _is_about(reason, key, value):
                return f'the keyword "{key}" at {place or "/"} cannot be enforced: {reason}'
    return f"the schema cannot be enforced: {reason}"


def _is_about(reason: str, key: str, value: Any) -> bool:
    if reason.startswith("Unimplemented keys"):
        return f'"{key}"' in reason
    match key:
        case "pattern":
            return "regular expression" in reason
        case "oneOf":
            return reason.startswith("oneOf ")
        case "minProperties" | "maxProperties":
            return "Properties only supported" in reason
        case "type":
            return reason == f"Invalid type: {value}"
        case "$ref":
            return isinstance(value, str) and value.lstrip("#") in reason
    return False


def parts(schema: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The schema and all schemas in it, each with its JSON pointer."""
    if not isinstance(schema, dict):
        return
    yield place, schema
    for key, name, part in _children(schema):
        yield from parts(part, f"{place}/{key}" + ("" if name is None else f"/{name}"))


def _children(schema: dict[str, Any]) -> Iterator[tuple[str, str | int | None, Any]]:
    for key in _BY_NAME:
        if isinstance(parts := schema.get(key), dict):
            yield from ((key, name, part) for name, part in parts.items())
    for key in _IN_LIST:
        if isinstance(parts := schema.get(key), list):
            yield from ((key, index, part) for index, part in enumerate(parts))
    for key in _DIRECT:
        if isinstance(part := schema.get(key), dict):
            yield key, None, part


def _without(schema: Schema, keywords: frozenset[str]) -> Schema:
    """A copy without `keywords`, wherever they are keywords and not names of properties."""
    if not keywords:
        return schema
    return _changed(schema, lambda part: {key: value for key, value in part.items() if key not in keywords})


def _changed(schema: Schema, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Schema:
    """A copy with `change` made to it and to all schemas in it."""
    if not isinstance(schema, dict):
        return schema
    part = change(schema)
    kept = dict(part)
    for key, name, inner in _children(part):
        if name is None:
            kept[key] = _changed(inner, change)
        else:
            if kept[key] is part[key]:
                kept[key] = part[key].copy()
            kept[key][name] = _changed(inner, change)
    return kept
