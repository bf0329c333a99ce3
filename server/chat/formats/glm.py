"""GLM 4.5 and later: the name, then keys and values between tags of their own, in `<tool_call>`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from server.chat.formats.family import THINK, MarkedFormat
from server.chat.formats.format import Arguments, CallGrammar
from server.chat.formats.hermes import BEGIN, END
from server.chat.formats.inlet import Broken, Cut, Steps, Stops
from server.chat.formats.loose_json import JsonStyle, LooseJson
from server.chat.formats.outlet import json_text
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.rules import grammar, one_or_more
from server.chat.formats.schema import ToolSchema, arguments_schema
from server.chat.formats.symbols import Symbols
from server.chat.formats.xml_calls import Around, argument_rules, copy_value
from server.chat.grammar import lark
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool, ToolChoice

KEY, KEY_END, VALUE, VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


# GLM 4.5 and 4.6 write a line break between the tags, 4.7 none.
_LINE = '"\\n"?'


class Glm(MarkedFormat):
    name = "glm"
    arguments: ClassVar[Arguments] = "bare"
    thought = THINK
    tokens = (BEGIN, END, KEY, KEY_END, VALUE, VALUE_END)
    # What of a broken call is no marker of calls but of its parts comes back as it was.
    spelled = {tag: tag for tag in (KEY, KEY_END, VALUE, VALUE_END)}  # noqa: RUF012 - constant

    def call_grammar(self, vocabulary: Vocabulary, tools: Sequence[Tool], choice: ToolChoice) -> CallGrammar | None:
        begin, end = lark.marker(vocabulary, BEGIN), lark.marker(vocabulary, END)
        key, key_end, value = (lark.marker(vocabulary, tag) for tag in (KEY, KEY_END, VALUE))
        around = Around(lambda name: f"{_LINE} {key} {name} {key_end} {_LINE} {value}", VALUE_END)
        names = [f"function_{index}" for index in range(len(tools))]
        rules = [
            ("calls", one_or_more("call", choice, "\n")),
            ("call", f"{begin} ({' | '.join(names)}) {_LINE} {end}"),
        ]
        for name, tool in zip(names, tools, strict=True):
            rules.append((name, f"{lark.literal(tool.name)} {name}_arguments"))
            rules += argument_rules(f"{name}_arguments", tool, around, vocabulary)
        return CallGrammar(grammar(rules), (BEGIN,))

    def reader(self, calls: Calls, symbols: Symbols) -> CallReader:
        return KeysAndValues(calls, symbols)


class KeysAndValues:
    bare = ""

    def __init__(self, calls: Calls, symbols: Symbols) -> None:
        self._calls = calls
        self._end = symbols.of(END)
        self._key, self._key_end, self._value, self._value_end = map(symbols.of, (KEY, KEY_END, VALUE, VALUE_END))
        self.openings = (symbols.of(BEGIN),)

    def calls(self, opening: str) -> Steps[None]:
        source, out = self._calls.source, self._calls.out
        yield from source.skip()
        name = yield from self._until(self._key, self._end, "\n", "{")
        tool = self._calls.tool(name)
        yield from source.skip()
        out.begin(tool.name)
        schema = arguments_schema(tool)
        if (yield from source.accept("{")):
            yield from LooseJson(source, JsonStyle((self._end,)), out.arguments).members(schema, "{")
        else:
            yield from self._pairs(schema)
        out.end()
        yield from source.skip()
        yield from source.accept(self._end)

    def _pairs(self, schema: ToolSchema) -> Steps[None]:
        source, out = self._calls.source, self._calls.out
        out.arguments("{")
        lead = ""
        while True:
            yield from source.skip()
            if (yield from source.starts(self._end)) or (not (yield from source.peek()) and not source.cut):
                break
            if not (yield from source.accept(self._key)):
                raise Cut if source.ended and source.cut else Broken
            key = (yield from self._until(self._key_end)).strip()
            source.take(len(self._key_end))
            yield from source.skip()
            if not (yield from source.accept(self._value)):
                raise Cut if source.ended and source.cut else Broken
            ends = (self._value_end, *(end for end in (self._end,) if len(end) == 1))
            yield from copy_value(self._calls, schema.of(key), f'{lead}"{json_text(key)}": ', ends)
            yield from source.accept(self._value_end)
            lead = ", "
        out.arguments("}")

    def _until(self, *stops: str) -> Steps[str]:
        found: list[str] = []
        _, stop = yield from self._calls.source.until(Stops(*stops), found.append)
        if not stop and self._calls.source.cut:
            raise Cut
        return "".join(found)
