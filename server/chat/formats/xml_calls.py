"""Calls as tags, one of them for each argument, whose values are bare text: typed by the tool's schema. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from server.chat.formats.inlet import Broken, Cut, Steps, Stops
from server.chat.formats.outlet import json_text
from server.chat.formats.reader import Calls
from server.chat.formats.rules import NAME, json_value, up_to
from server.chat.formats.schema import ToolSchema, arguments_schema, typed
from server.chat.grammar import lark
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool

_LONGEST_NAME = 256
_WORDS = {
    "integer": lark.regex(r"-?(0|[1-9][0-9]{0,17})"),
    "number": lark.regex(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?"),
    "boolean": lark.choice(("true", "false", "True", "False")),
    "null": lark.choice(("null", "None")),
}


@dataclass(frozen=True, slots=True)
class Tags:
    """As symbols. `call` and `argument` go on with a name and ">"; `section_end` closes all calls together."""

    call: str
    call_end: str
    argument: str
    argument_end: str
    section_end: str


class XmlCalls:
    def __init__(self, calls: Calls, tags: Tags) -> None:
        self._calls = calls
        self._tags = tags

    def read(self, begun: bool = False) -> Steps[None]:
        """Calls and the tag behind them. `begun`: the tag of the first was taken."""
        source, tags = self._calls.source, self._tags
        if not begun:
            yield from source.skip()
            if not (yield from source.accept(tags.call)):
                raise Cut if source.ended and source.cut and tags.call.startswith(source.unread) else Broken
        while True:
            yield from self._one()
            yield from source.skip()
            if not (yield from source.accept(tags.call)):
                break
        yield from source.accept(tags.section_end)

    def _one(self) -> Steps[None]:
        source, out, tags = self._calls.source, self._calls.out, self._tags
        tool = self._calls.tool((yield from self._name()))
        schema = arguments_schema(tool)
        out.begin(tool.name)
        out.arguments("{")
        lead = ""
        while True:
            yield from source.skip()
            if (yield from source.accept(tags.call_end)) or (yield from source.starts(tags.section_end)):
                break
            if not (yield from source.peek()) and not source.cut:
                break
            if not (yield from source.accept(tags.argument)):
                raise Cut if source.ended and source.cut else Broken
            name = yield from self._name()
            ends = (tags.argument_end, *(tag for tag in (tags.section_end,) if len(tag) == 1))
            yield from copy_value(self._calls, schema.of(name), f'{lead}"{json_text(name)}": ', ends)
            yield from source.accept(tags.argument_end)
            lead = ", "
        out.arguments("}")
        out.end()

    def _name(self) -> Steps[str]:
        name: list[str] = []
        _, stop = yield from self._calls.source.until(Stops(">", "\n"), name.append)
        text = "".join(name).strip().strip("\"'")
        if not stop:
            raise Cut if self._calls.source.cut else Broken
        if not text or len(text) > _LONGEST_NAME:
            raise Broken
        self._calls.source.take(1)
        return text


def copy_value(calls: Calls, schema: ToolSchema | None, lead: str, ends: tuple[str, ...]) -> Steps[None]:
    """A bare value up to one of `ends`, which stays. A string is passed on as it comes. The line breaks that a model
    puts around a value are not part of it."""
    source, out = calls.source, calls.out
    shown = source.symbols.shown
    wrapped = bool((yield from source.accept("\n")))
    hold = "\n" if wrapped else ""
    stops = Stops(*ends)
    if schema is None or schema.is_text:
        out.arguments(lead + '"')
        space, stop = yield from source.until(stops, lambda text: out.arguments(json_text(shown(text))), hold)
        out.arguments(json_text(space[:-1]))
    else:
        parts: list[str] = []
        space, stop = yield from source.until(stops, parts.append, hold)
        if stop:
            out.arguments(lead + typed(shown("".join(parts)) + space[:-1], schema))
    if not stop:
        raise Cut if source.cut else Broken
    if schema is None or schema.is_text:
        out.arguments('"')


@dataclass(frozen=True, slots=True)
class Around:
    """What a grammar has around a value: `tag` makes the term in front of it, of one that stands for the argument's
    name; the text `end` closes it, with the terms `before` it and `after` it. A string has `before` in itself."""

    tag: Callable[[str], str]
    end: str
    before: str = ""
    after: str = ""


def argument_rules(name: str, tool: Tool, around: Around, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Rules, the first of them `name`, for the arguments of a call in their order."""
    schema = arguments_schema(tool)
    if not schema.names:
        if tool.parameters is not None and schema.is_closed:
            return [(name, '""')]
        term, rules = up_to(f"{name}_any", around.end, vocabulary)
        return [(name, f"({around.tag(NAME)} {term} {around.after})*"), *rules]
    body, rules = [], []
    for index, key in enumerate(schema.names):
        part = schema.of(key) or ToolSchema({})
        rules += _value_rules(f"{name}_{index}", tool, part, around, vocabulary)
        item = f"{around.tag(lark.literal(key))} {name}_{index} {around.after}"
        body.append(item if key in schema.required else f"({item})?")
    return [(name, " ".join(body)), *rules]


def _value_rules(
    name: str, tool: Tool, schema: ToolSchema, around: Around, vocabulary: Vocabulary
) -> list[tuple[str, str]]:
    """Rules, the first of them `name`, for a bare value and its end."""
    types, choices = schema.types, schema.choices
    ended = f"{around.before} {lark.marker(vocabulary, around.end)}"
    if choices and all(isinstance(choice, str) for choice in choices):
        return [(name, f"{lark.choice(choices)} {ended}")]
    if "string" in types:
        term, rules = up_to(f"{name}_text", around.end, vocabulary)
        return [(name, term), *rules]
    if types <= _WORDS.keys() and not choices:
        return [(name, f"({' | '.join(_WORDS[kind] for kind in sorted(types))}) {ended}")]
    return [(name, f"{name}_json {ended}"), (f"{name}_json", json_value(tool, schema.value))]
