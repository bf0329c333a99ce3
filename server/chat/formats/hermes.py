"""Hermes, Qwen 2.5 and 3, SmolLM 3, Granite 4 and many more: JSON between `<tool_call>` and `</tool_call>`.

It stands in for models whose template has no calls of its own, too.
"""

from __future__ import annotations

from typing import ClassVar

from server.chat.formats.family import THINK, MarkedFormat
from server.chat.formats.format import ThoughtMarkers
from server.chat.formats.inlet import SPACE, Steps
from server.chat.formats.json_calls import JsonCalls
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.symbols import Symbols
from server.chat.formats.xml_calls import Tags, XmlCalls

BEGIN, END = "<tool_call>", "</tool_call>"
FUNCTION = "<function="


class Hermes(MarkedFormat):
    name = "hermes"
    thought: ClassVar[ThoughtMarkers | None] = THINK
    tokens = (BEGIN, END)

    def reader(self, calls: Calls, symbols: Symbols) -> CallReader:
        return TaggedCalls(calls, symbols, openings=(BEGIN,))


class Plain(Hermes):
    """A model whose template knows neither thoughts nor calls."""

    name = "plain"
    thought = None


class Think(Hermes):
    """DeepSeek R1 and other models that think between `<think>` and `</think>` and have no calls that are known."""

    name = "think"


class TaggedCalls:
    """JSON or tags, whichever comes: models that were trained on one write the other when their context is full of it.

    `openings`: BEGIN, and the tag of a function where models leave BEGIN out.
    """

    bare = ""

    def __init__(self, calls: Calls, symbols: Symbols, openings: tuple[str, ...]) -> None:
        end = symbols.of(END)
        self._calls = calls
        self._json = JsonCalls(calls, (end,))
        self._xml = XmlCalls(calls, Tags(FUNCTION, "</function>", "<parameter=", "</parameter>", end))
        self.openings = tuple(symbols.of(opening) for opening in openings)

    def calls(self, opening: str) -> Steps[None]:
        if opening == FUNCTION:
            yield from self._xml.read(begun=True)
            return
        yield from self._calls.source.skip(SPACE)
        xml = yield from self._calls.source.starts(FUNCTION)
        yield from (self._xml if xml else self._json).read()
