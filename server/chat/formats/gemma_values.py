"""The grammar of values as Gemma writes them: bare keys, bare numbers and words, strings between marks. Pure text.

JSON Schema in that dialect: types, properties, required, items, enum and const are held. `grammar/unheld.py` names the
keywords that are not.
"""

from __future__ import annotations

from typing import Any

from server.chat.formats.rules import in_order, up_to
from server.chat.formats.schema import ToolSchema
from server.chat.grammar import lark
from server.chat.tokenizers.vocabulary import Vocabulary

_DEEPEST = 4
_KEY = lark.regex(r"[A-Za-z0-9_$][A-Za-z0-9_.\-$]{0,63}")


class GemmaValues:
    """`shared` are the rules that those of objects stand on."""

    def __init__(self, vocabulary: Vocabulary, mark: str) -> None:
        self._mark = lark.marker(vocabulary, mark)
        text, rules = up_to("text", mark, vocabulary)
        self.shared = [
            ("string", f"{self._mark} {text}"),
            *rules,
            ("number", lark.regex(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?")),
            ("integer", lark.regex(r"-?(0|[1-9][0-9]{0,17})")),
            ("boolean", '"true" | "false"'),
            ("null", '"null"'),
            ("any_object", f'"{{" ({_KEY} ":" any ("," {_KEY} ":" any)*)? "}}"'),
            ("any_list", '"[" (any ("," any)*)? "]"'),
            ("any", "string | number | boolean | null | any_object | any_list"),
        ]

    def object(self, name: str, schema: ToolSchema, depth: int = 0) -> list[tuple[str, str]]:
        """Rules, the first of them `name`, for an object with the members of `schema`, in the alphabet's order as the
        template writes them."""
        keys = sorted(schema.names, key=str.casefold)
        if not keys:
            return [(name, '"{" "}"' if schema.is_closed else "any_object")]
        rules, listed = [], []
        for index, key in enumerate(keys):
            term, needed = self._value(f"{name}_{index}v", schema.of(key) or ToolSchema({}), depth + 1)
            rules += needed
            listed.append((f"{lark.literal(key + ':')} {term}", key in schema.required))
        return [(name, f'"{{" {name}_m "}}"'), *in_order(f"{name}_m", listed, ","), *rules]

    def _value(self, name: str, schema: ToolSchema, depth: int) -> tuple[str, list[tuple[str, str]]]:
        """A term for a value, and the rules that it needs."""
        choices = schema.choices
        if choices and all(isinstance(choice, str | int | float | None) for choice in choices):
            return f"({' | '.join(map(self._constant, choices))})", []
        types = schema.types
        if (len(types) > 1 and {"object", "array"} & types) or depth > _DEEPEST:
            return "any", []
        if types == {"object"}:
            return name, self.object(name, schema, depth)
        if types == {"array"}:
            item, rules = self._value(f"{name}i", schema.items, depth + 1)
            return name, [(name, f'"[" ({item} ("," {item})*)? "]"'), *rules]
        return f"({' | '.join(sorted(types))})", []

    def _constant(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self._mark} {lark.literal(value)} {self._mark}" if value else f"{self._mark} {self._mark}"
        if value is None or isinstance(value, bool):
            return lark.literal({None: "null", True: "true", False: "false"}[value])
        return lark.literal(str(value))
