"""The fields that say what an answer's text must be: OpenAI's, vLLM's, SGLang's, llama-server's and Ollama's. Pure.

All of them become one `Shape`, and a request may give one. HTTP process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from server.api.wire import Wire, shown
from server.chat.shapes import AnyJson, GrammarText, JsonSchema, OneOf, Regex, Shape, StructuralTag
from server.errors import InvalidRequest, UnsupportedField

_OUTPUTS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
# How the constraint is worked out, not what it is.
_HARMLESS_OUTPUTS = ("disable_fallback",)


class ShapeFields(Wire):
    response_format: Any = None
    structured_outputs: dict[str, Any] = Field({})
    guided_json: Any = None
    guided_regex: str = ""
    guided_choice: list[Any] = Field([])
    guided_grammar: str = ""
    structural_tag: Any = None
    json_schema: Any = None
    grammar: str = ""
    regex: str = ""
    ebnf: str = ""
    format: Any = None
    json_mode: bool = False


def asked_shape(fields: ShapeFields, own: tuple[str, Shape | None] = ("", None)) -> Shape | None:
    """`own`: a dialect's own field for it, with what that asks for.

    Raises InvalidRequest for a shape that is malformed, and for two.
    """
    shapes = [(where, shape) for where, shape in (own, *_shapes(fields)) if shape is not None]
    if len(shapes) > 1:
        (first, _), (second, _) = shapes[:2]
        raise InvalidRequest(f"{first} and {second} both say what the answer must be; give one.", param=second)
    return shapes[0][1] if shapes else None


def schema_of(value: Any, where: str, *, strict: bool) -> JsonSchema:
    """A JSON Schema as an object, or as JSON text of one."""
    if isinstance(value, str):
        value = _parsed(value, where)
    if not isinstance(value, dict | bool):
        raise InvalidRequest(f"{where} must be a JSON Schema, not {shown(value)}.", param=where)
    return JsonSchema(value, strict, where)


def _shapes(fields: ShapeFields) -> Iterator[tuple[str, Shape | None]]:
    yield "response_format", _response_format(fields.response_format)
    yield from _structured_outputs(fields.structured_outputs)
    for name, schema in (("guided_json", fields.guided_json), ("json_schema", fields.json_schema)):
        yield name, None if schema is None else schema_of(schema, name, strict=True)
    for name, pattern in (("guided_regex", fields.guided_regex), ("regex", fields.regex)):
        yield name, Regex(pattern, name) if pattern else None
    yield "guided_choice", _choice(fields.guided_choice, "guided_choice") if fields.guided_choice else None
    yield "guided_grammar", _grammar(fields.guided_grammar, "guided_grammar")
    yield "grammar", GrammarText(fields.grammar, "gbnf", "grammar") if fields.grammar else None
    yield "ebnf", GrammarText(fields.ebnf, "gbnf", "ebnf") if fields.ebnf else None
    yield "structural_tag", _tag(fields.structural_tag, "structural_tag")
    yield "format", _ollama_format(fields.format)
    yield "json_mode", AnyJson() if fields.json_mode else None


def _response_format(value: Any) -> Shape | None:
    where = "response_format"
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(value)}.", param=where)
    kind = value.get("type")
    match kind:
        case "text":
            return None
        case "json_object":
            # llama-server takes a schema here.
            schema = value.get("schema")
            return AnyJson() if schema is None else schema_of(schema, f"{where}.schema", strict=False)
        case "json_schema":
            return _json_schema(value, where)
        case "structural_tag":
            return _tag(value, where)
    kinds = "text, json_object, json_schema or structural_tag"
    raise InvalidRequest(f"{where}.type must be {kinds}, not {shown(kind)}.", param=f"{where}.type")


def _json_schema(value: dict[str, Any], where: str) -> JsonSchema:
    given = value.get("json_schema")
    if given is None and "schema" in value:
        # As llama-server has it, one level up.
        given, inner = value, where
    else:
        inner = f"{where}.json_schema"
    if not isinstance(given, dict):
        raise InvalidRequest(f"{inner} must be an object, not {shown(given)}.", param=inner)
    strict = given.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise InvalidRequest(f"{inner}.strict must be a boolean, not {shown(strict)}.", param=f"{inner}.strict")
    if given.get("schema") is None:
        raise InvalidRequest(f"{inner}.schema is required.", param=f"{inner}.schema")
    return schema_of(given["schema"], f"{inner}.schema", strict=bool(strict))


def _structured_outputs(given: dict[str, Any]) -> Iterator[tuple[str, Shape | None]]:
    for name, value in given.items():
        where = f"structured_outputs.{name}"
        if value is None or value is False or name in _HARMLESS_OUTPUTS:
            continue
        if name not in _OUTPUTS:
            raise UnsupportedField(f"{where} is not supported: it takes one of {', '.join(_OUTPUTS)}.", param=where)
        yield where, _output(name, value, where)


def _output(name: str, value: Any, where: str) -> Shape | None:
    match name:
        case "json":
            return schema_of(value, where, strict=True)
        case "json_object":
            if value is not True:
                raise InvalidRequest(f"{where} must be a boolean, not {shown(value)}.", param=where)
            return AnyJson()
        case "choice":
            return _choice(value, where)
        case "structural_tag":
            return _tag(value, where)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{where} must be a string that is not empty, not {shown(value)}.", param=where)
    return Regex(value, where) if name == "regex" else _grammar(value, where)


def _grammar(text: str, where: str) -> GrammarText | None:
    """vLLM takes both dialects, and looks which it is."""
    return GrammarText(text, "auto", where) if text else None


def _choice(value: Any, where: str) -> OneOf:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
        raise InvalidRequest(f"{where} must be a list of strings, none of them empty, not {shown(value)}.", param=where)
    return OneOf(tuple(dict.fromkeys(value)), where)


def _tag(value: Any, where: str) -> StructuralTag | None:
    """`structures` with `begin`, `schema` and `end`, and the `triggers` that open one."""
    if value is None or value in ("", {}):
        return None
    if isinstance(value, str):
        value = _parsed(value, where)
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(value)}.", param=where)
    if "format" in value:
        message = f"{where}.format is not supported: give structures and triggers."
        raise UnsupportedField(message, param=f"{where}.format")
    structures, triggers = value.get("structures"), value.get("triggers", [])
    if not isinstance(structures, list) or not structures:
        raise InvalidRequest(f"{where}.structures must be a list that is not empty.", param=f"{where}.structures")
    if not isinstance(triggers, list) or not all(isinstance(text, str) and text for text in triggers):
        raise InvalidRequest(f"{where}.triggers must be a list of strings.", param=f"{where}.triggers")
    tags = tuple(_structure(item, f"{where}.structures.{index}") for index, item in enumerate(structures))
    return StructuralTag(tags, tuple(triggers), where)


def _structure(item: Any, where: str) -> tuple[str, dict[str, Any], str]:
    if isinstance(item, dict):
        begin, schema, end = item.get("begin"), item.get("schema", {}), item.get("end")
        if isinstance(begin, str) and begin and isinstance(schema, dict) and isinstance(end, str):
            return begin, schema, end
    raise InvalidRequest(f"{where} must hold begin and end, which are strings, and a schema.", param=where)


def _ollama_format(value: Any) -> Shape | None:
    if value is None or value == "":
        return None
    return AnyJson() if value == "json" else schema_of(value, "format", strict=True)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{where} is not valid JSON.", param=where) from None
