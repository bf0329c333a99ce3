"""Gemma 4: `<|tool_call>call:f{key:<|"|>text<|"|>,n:1}<tool_call|>`, thoughts in a channel of that name.

Its models deviate from that in many ways when no grammar holds them: names with dots and colons, keys with hyphens,
space and line breaks between arguments, parentheses, words without quotes, Python's True and None. All are read.
"""

from __future__ import annotations

from server.chat.formats.family import MarkedFormat
from server.chat.formats.format import ThoughtMarkers
from server.chat.formats.inlet import SPACE, Broken, Cut, Steps, Stops
from server.chat.formats.loose_json import JsonStyle, LooseJson
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.schema import arguments_schema
from server.chat.formats.symbols import Symbols

BEGIN, END, MARK = "<|tool_call>", "<tool_call|>", '<|"|>'
_CHANNEL, _CHANNEL_END = "<|channel>", "<channel|>"
_PREFIX = "call:"


class Gemma4(MarkedFormat):
    name = "gemma4"
    thought = ThoughtMarkers("<|channel>thought\n", _CHANNEL_END, "\n<channel|>")
    tokens = (BEGIN, END, MARK, _CHANNEL, _CHANNEL_END)
    spelled = {MARK: '"'}  # noqa: RUF012 - constant

    def reader(self, calls: Calls, symbols: Symbols) -> CallReader:
        return GemmaCalls(calls, *map(symbols.of, (BEGIN, END, MARK)))


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
