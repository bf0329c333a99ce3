"""The grammar of values as Gemma writes them: bare keys, bare numbers and words, strings between marks. Pure text.

JSON Schema in that dialect. `holds` says which keywords the grammar holds; `grammar/unheld.py` names the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from server.chat.formats.rules import in_order, up_to
from server.chat.formats.schema import ANY, ToolSchema
from server.chat.grammar import lark
from server.chat.tokenizers.vocabulary import Vocabulary

DEEPEST = 4
_KEY = lark.regex(r"[A-Za-z0-9_$][A-Za-z0-9_.\-$]{0,63}")
_OF_TEXT = frozenset({"minLength", "maxLength", "pattern"})
_OF_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_OF_LISTS = frozenset({"items", "minItems", "maxItems"})
# Whole texts, without a choice at the top that an anchor would belong to one side of.
_ANCHORED = re.compile(r"\^([^|]*|\([^()]*\))(?<!\\)\$")
_MOST_REPEATED = 10_000

Rules = list[tuple[str, str]]


def holds(schema: ToolSchema, key: str) -> bool:
    """Whether the grammar holds the keyword `key` that stands in `schema`."""
    value = schema.value.get(key)
    match key:
        case "type" | "properties" | "required" | "const" | "nullable" | "$ref":
            return True
        case "enum":
            return isinstance(value, list) and not any(isinstance(item, list | dict) for item in value)
        case "anyOf":
            return bool(schema.branches)
        case "additionalProperties":
            # Members that are not listed are never written, whether they may be or not.
            return isinstance(value, bool) or not schema.names
        case "pattern":
            return bool(_whole(value)) and not schema.value.keys() & {"minLength", "maxLength"} and schema.types != ANY
        case "minLength" | "maxLength" | "minItems" | "maxItems":
            return schema.types != ANY and type(value) is int and value <= _MOST_REPEATED
        case _:
            return key == "items" or (key in _OF_NUMBERS and schema.types != ANY)


class GemmaValues:
    """`shared` are the rules that those of objects stand on."""

    def __init__(self, vocabulary: Vocabulary, mark: str) -> None:
        self._vocabulary = vocabulary
        self._ends = mark
        self._mark = lark.marker(vocabulary, mark)
        text, rules = up_to("text", mark, vocabulary)
        self.shared = [
            ("string", f"{self._mark} {text}"),
            *rules,
            ("number", lark.regex(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?")),
            ("integer", lark.regex(r"-?(0|[1-9][0-9]{0,17})")),
            ("boolean", '"true" | "false"'),
            ("null", '"null"'),
            ("object", _members("any")),
            ("array", '"[" (any ("," any)*)? "]"'),
            ("any", "string | number | boolean | null | object | array"),
        ]

    def object(self, name: str, schema: ToolSchema, depth: int = 0) -> Rules:
        """Rules, the first of them `name`, for an object with the members of `schema`, in the alphabet's order as the
        template writes them."""
        keys = sorted(schema.names, key=str.casefold)
        if not keys:
            return self._map(name, schema, depth)
        rules, listed = [], []
        for index, key in enumerate(keys):
            term, needed = self._value(f"{name}_{index}v", schema.of(key) or ToolSchema({}), depth + 1)
            rules += needed
            listed.append((f"{lark.literal(key + ':')} {term}", key in schema.required))
        return [(name, f'"{{" {name}_m "}}"'), *in_order(f"{name}_m", listed, ","), *rules]

    def _map(self, name: str, schema: ToolSchema, depth: int) -> Rules:
        """Of members whose names are free."""
        if schema.is_closed:
            return [(name, '"{" "}"')]
        term, rules = self._value(f"{name}_v", schema.others, depth + 1)
        return [(name, _members(term)), *rules]

    def _value(self, name: str, schema: ToolSchema, depth: int) -> tuple[str, Rules]:
        """A term for a value, and the rules that it needs."""
        if depth > DEEPEST:
            return "any", []
        choices = schema.choices
        if choices and all(isinstance(choice, str | int | float | None) for choice in choices):
            return _one_of(map(self._constant, choices)), []
        if branches := schema.branches:
            made = [self._value(f"{name}_{index}o", branch, depth + 1) for index, branch in enumerate(branches)]
        elif schema.types == ANY:
            return "any", []
        else:
            made = [self._of_type(kind, f"{name}_{kind}", schema, depth) for kind in sorted(schema.types)]
        return _one_of(term for term, _ in made), [rule for _, rules in made for rule in rules]

    def _of_type(self, kind: str, name: str, schema: ToolSchema, depth: int) -> tuple[str, Rules]:
        said = schema.value.keys()
        if kind == "object":
            return name, self.object(name, schema, depth)
        if kind == "array" and said & _OF_LISTS:
            item, rules = self._value(f"{name}_i", schema.items, depth + 1)
            return name, [(name, f'"[" {_repeated(item, schema)} "]"'), *rules]
        if kind == "string" and any(holds(schema, key) for key in said & _OF_TEXT):
            term, rules = up_to(f"{name}_t", self._ends, self._vocabulary, self._text(schema))
            return name, [(name, f"{self._mark} {term}"), *rules]
        if kind in ("number", "integer") and (bounds := said & _OF_NUMBERS):
            return name, [(name, lark.json_schema({"type": kind, **{key: schema.value[key] for key in bounds}}))]
        return kind, []

    def _text(self, schema: ToolSchema) -> str:
        if holds(schema, "pattern"):
            return lark.regex(f"(?s:{_whole(schema.value['pattern'])})")
        least, most = _bounds(schema, "minLength", "maxLength")
        # A mark that is spelled would count as characters of the text.
        one = "." if self._vocabulary.marker(self._ends) is not None else f"[^{self._ends[0]}]"
        return lark.regex(f"(?s:{one}{{{least},{'' if most is None else most}}})")

    def _constant(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self._mark} {lark.literal(value)} {self._mark}" if value else f"{self._mark} {self._mark}"
        if value is None or isinstance(value, bool):
            return lark.literal({None: "null", True: "true", False: "false"}[value])
        return lark.literal(str(value))


def _members(value: str) -> str:
    return f'"{{" ({_KEY} ":" {value} ("," {_KEY} ":" {value})*)? "}}"'


def _one_of(terms: Iterable[str]) -> str:
    return f"({' | '.join(terms)})"


def _repeated(item: str, schema: ToolSchema) -> str:
    least, most = _bounds(schema, "minItems", "maxItems")
    if most == 0:
        return ""
    # The first has no comma before it.
    more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
    listed = f'({item} ("," {item}){more})'
    return listed if least else f"{listed}?"


def _bounds(schema: ToolSchema, least: str, most: str) -> tuple[int, int | None]:
    return (
        max(schema.value[least], 0) if holds(schema, least) else 0,
        max(schema.value[most], 0) if holds(schema, most) else None,
    )


def _whole(pattern: Any) -> str | None:
    """`pattern` without the anchors that say that it is of a whole text; None if it is not."""
    found = _ANCHORED.fullmatch(pattern) if isinstance(pattern, str) else None
    return None if found is None else found[1]
