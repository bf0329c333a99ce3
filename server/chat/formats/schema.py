"""What a tool's schema says of the type of an argument. Pure; a schema that says nothing clear allows any type."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from server.chat.tools import Tool

ANY = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
_DEEPEST = 16
# Beside a choice of schemas, what each of them would have to be joined with.
_SAYS_MORE = frozenset({
    "type", "enum", "const", "properties", "required", "items", "additionalProperties", "allOf", "oneOf", "not",
    "nullable",
})  # fmt: skip
# Python reads no integer of more than 4300 digits.
_LONGEST_NUMBER = 300
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_LOOSE_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}


class ToolSchema:
    """A part of a JSON Schema, with the whole of it for references."""

    def __init__(self, value: Any, root: Any = None) -> None:
        self._root = value if root is None else root
        self._value = _resolved(value, self._root)

    @property
    def types(self) -> frozenset[str]:
        """The types that it allows."""
        return _types(self._value, self._root, _DEEPEST)

    @property
    def is_text(self) -> bool:
        """Whether it allows strings and nothing else."""
        return self.types == {"string"}

    def of(self, name: str) -> ToolSchema | None:
        """None where it is not declared."""
        value = self._find(name, _DEEPEST)
        return None if value is None else ToolSchema(value, self._root)

    @property
    def names(self) -> list[str]:
        properties = self._value.get("properties")
        return [name for name in properties if isinstance(name, str)] if isinstance(properties, dict) else []

    @property
    def required(self) -> frozenset[str]:
        required = self._value.get("required")
        return (
            frozenset(name for name in required if isinstance(name, str)) if isinstance(required, list) else frozenset()
        )

    @property
    def is_closed(self) -> bool:
        """Whether an object has no members but those that are listed."""
        return self._value.get("additionalProperties") is False or self._value.get("properties") == {}

    @property
    def choices(self) -> list[Any] | None:
        """The values that it lists, where it lists them."""
        values = self._value.get("enum", [self._value["const"]] if "const" in self._value else None)
        return values if isinstance(values, list) else None

    @property
    def value(self) -> dict[str, Any]:
        return self._value

    @property
    def items(self) -> ToolSchema:
        return ToolSchema(self._value.get("items", {}), self._root)

    @property
    def others(self) -> ToolSchema:
        """Of the members that are not listed."""
        return ToolSchema(self._value.get("additionalProperties", {}), self._root)

    @property
    def branches(self) -> list[ToolSchema]:
        """The schemas of which a value must satisfy one, where that is all that it says."""
        parts = self._value.get("anyOf")
        if not isinstance(parts, list) or self._value.keys() & _SAYS_MORE:
            return []
        return [ToolSchema(part, self._root) for part in parts]

    def _find(self, name: str, depth: int) -> Any:
        properties = self._value.get("properties")
        if isinstance(properties, dict) and name in properties:
            return properties[name]
        if depth:
            for part in _parts(self._value):
                found = ToolSchema(part, self._root)._find(name, depth - 1)
                if found is not None:
                    return found
        extra = self._value.get("additionalProperties")
        return extra if isinstance(extra, dict) and extra else None


def arguments_schema(tool: Tool) -> ToolSchema:
    return ToolSchema(tool.parameters or {})


def scalar(word: str) -> str | None:
    """The JSON of a number, a boolean or null as models write them; None for any other word."""
    if word in _WORDS:
        return _WORDS[word]
    if len(word) > _LONGEST_NUMBER:
        return None
    if _NUMBER.fullmatch(word):
        return word
    if _LOOSE_NUMBER.fullmatch(word):
        number = float(word)
        # Not infinity, which JSON has not.
        return json.dumps(int(number) if number.is_integer() else number) if abs(number) < 1e300 else None
    return None


def typed(text: str, schema: ToolSchema | None) -> str:
    """The JSON of a value that came as bare text, of the type that the schema wants, else a string."""
    types = frozenset({"string"}) if schema is None else schema.types
    word = text.strip()
    value = scalar(word)
    # Where a string will do as well, 007 is one.
    if value is not None and _type_of(value) & types and (value == word or "string" not in types):
        return value
    if word[:1] in ("{", "[") and types & {"object", "array"}:
        try:
            loaded = json.loads(word, strict=False)
            return json.dumps(loaded, ensure_ascii=False).encode("utf-8", "replace").decode()
        except (ValueError, RecursionError):
            pass
    if word[:1] == '"' and "string" not in types:
        return typed(word.strip('"'), schema)
    return json.dumps(text, ensure_ascii=False)


def _type_of(value: str) -> frozenset[str]:
    if value in ("true", "false"):
        return frozenset({"boolean"})
    if value == "null":
        return frozenset({"null"})
    return frozenset({"integer", "number"}) if re.fullmatch(r"-?\d+(?:\.0+)?", value) else frozenset({"number"})


def _types(value: Any, root: Any, depth: int) -> frozenset[str]:
    value = _resolved(value, root)
    named = value.get("type")
    if isinstance(named, str):
        found = frozenset({named.lower()})
    elif isinstance(named, list):
        found = frozenset(name.lower() for name in named if isinstance(name, str))
    elif isinstance(value.get("enum"), list):
        found = frozenset().union(*(_type_of_value(item) for item in value["enum"]))
    elif "const" in value:
        found = _type_of_value(value["const"])
    elif depth and (parts := _parts(value)):
        found = frozenset().union(*(_types(part, root, depth - 1) for part in parts))
    elif "properties" in value:
        found = frozenset({"object"})
    else:
        found = ANY
    found &= ANY
    if value.get("nullable") is True:
        found |= {"null"}
    return found or ANY


def _type_of_value(value: Any) -> frozenset[str]:
    if isinstance(value, str):
        return frozenset({"string"})
    if isinstance(value, dict):
        return frozenset({"object"})
    if isinstance(value, list):
        return frozenset({"array"})
    return _type_of(json.dumps(value))


def _parts(value: dict[str, Any]) -> list[Any]:
    return [
        part
        for key in ("anyOf", "oneOf", "allOf")
        if isinstance(value.get(key), list)
        for part in value[key]
        if isinstance(part, dict)
    ]


def _resolved(value: Any, root: Any) -> dict[str, Any]:
    """Behind its references into the same schema; an empty schema where there is none to be found."""
    for _ in range(_DEEPEST):
        reference = value.get("$ref") if isinstance(value, dict) else None
        if not isinstance(reference, str):
            break
        value = root
        for step in reference.removeprefix("#").strip("/").split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            value = value.get(name) if isinstance(value, dict) and step else value
    return value if isinstance(value, dict) and "$ref" not in value else {}


def offered(name: str, tools: Sequence[Tool]) -> Tool | None:
    """The tool that a model means. Models put a namespace before a name (`functions.get`, `ns:get`), and a hyphen where
    an underscore was; such a name counts where it can mean one tool only."""
    name = name.strip().strip("\"'`")
    for tool in tools:
        if tool.name == name:
            return tool
    for fold in (_last, _folded):
        meant = [tool for tool in tools if fold(tool.name) == fold(name)]
        if len(meant) == 1 and fold(name):
            return meant[0]
    return None


def _last(name: str) -> str:
    return re.split(r"[.:/]", name)[-1]


def _folded(name: str) -> str:
    return _last(name).replace("-", "_").casefold()
