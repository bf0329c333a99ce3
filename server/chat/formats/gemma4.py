"""Gemma 4: `<|tool_call>call:f{key:<|"|>text<|"|>,n:1}<tool_call|>`, thoughts in a channel of that name.

Its models deviate from that in many ways when no grammar holds them: names with dots and colons, keys with hyphens,
space and line breaks between arguments, parentheses, words without quotes, Python's True and None. All are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from server.chat.formats.family import MarkedFormat
from server.chat.formats.format import Arguments, CallGrammar, ThoughtMarkers
from server.chat.formats.gemma_values import GemmaValues
from server.chat.formats.inlet import SPACE, Broken, Cut, Steps, Stops
from server.chat.formats.loose_json import JsonStyle, LooseJson
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.rules import grammar, one_or_more
from server.chat.formats.schema import arguments_schema
from server.chat.formats.symbols import Symbols
from server.chat.grammar import lark
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool, ToolChoice

BEGIN, END, MARK = "<|tool_call>", "<tool_call|>", '<|"|>'
_CHANNEL, _CHANNEL_END = "<|channel>", "<channel|>"
_PREFIX = "call:"


class Gemma4(MarkedFormat):
    name = "gemma4"
    arguments: ClassVar[Arguments] = "gemma"
    thought = ThoughtMarkers("<|channel>thought\n", _CHANNEL_END, "\n<channel|>")
    tokens = (BEGIN, END, MARK, _CHANNEL, _CHANNEL_END)
    spelled = {MARK: '"'}  # noqa: RUF012 - constant

    def call_grammar(self, vocabulary: Vocabulary, tools: Sequence[Tool], choice: ToolChoice) -> CallGrammar | None:
        return gemma_grammar(vocabulary, tools, choice, BEGIN, END, MARK)

    def reader(self, calls: Calls, symbols: Symbols) -> CallReader:
        return GemmaCalls(calls, *map(symbols.of, (BEGIN, END, MARK)))


def gemma_grammar(
    vocabulary: Vocabulary, tools: Sequence[Tool], choice: ToolChoice, begin: str, end: str, mark: str
) -> CallGrammar:
    """Of calls as Gemma writes them between the markers `begin` and `end`, with strings between two of `mark`."""
    names = [f"function_{index}" for index in range(len(tools))]
    rules = [
        ("calls", one_or_more("call", choice)),
        ("call", f"{lark.marker(vocabulary, begin)} ({' | '.join(names)}) {lark.marker(vocabulary, end)}"),
    ]
    values = GemmaValues(vocabulary, mark)
    for name, tool in zip(names, tools, strict=True):
        rules.append((name, f"{lark.literal(_PREFIX + tool.name)} {name}_arguments"))
        rules += values.object(f"{name}_arguments", arguments_schema(tool))
    return CallGrammar(grammar([*rules, *values.shared]), (begin,))


class GemmaCalls:
    """`mark` encloses strings; all as symbols."""

    bare = ""

    def __init__(self, calls: Calls, begin: str, end: str, mark: str) -> None:
        self._calls = calls
        self._end = end
        self._style = JsonStyle((end, begin), mark, bare=True)
        self.openings = (begin,)

    def calls(self, opening: str) -> Steps[None]:
        source = self._calls.source
        while True:
            yield from self._one()
            yield from source.skip(SPACE + ",;})")
            if not (yield from source.starts(_PREFIX)):
                break
        yield from source.accept(self._end)

    def _one(self) -> Steps[None]:
        source, out = self._calls.source, self._calls.out
        yield from source.skip()
        yield from source.accept(_PREFIX)
        name: list[str] = []
        _, bracket = yield from source.until(Stops("{", "(", "\n", *self._style.ends), name.append)
        if bracket not in ("{", "("):
            raise Cut if not bracket and source.cut else Broken
        tool = self._calls.tool("".join(name))
        source.take(1)
        out.begin(tool.name)
        if bracket == "(":
            yield from source.skip()
            if (yield from source.accept("{")):
                bracket = "{"
        yield from LooseJson(source, self._style, out.arguments).members(arguments_schema(tool), bracket)
        out.end()
