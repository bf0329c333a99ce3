"""Hermes, Qwen 2.5 and 3, SmolLM 3, Granite 4 and many more: JSON between `<tool_call>` and `</tool_call>`.

It stands in for models whose template has no calls of its own, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

from server.chat.formats.family import THINK, MarkedFormat
from server.chat.formats.format import CallGrammar, ThoughtMarkers
from server.chat.formats.inlet import SPACE, Steps
from server.chat.formats.json_calls import JsonCalls
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.rules import grammar, json_arguments, one_or_more
from server.chat.formats.symbols import Symbols
from server.chat.formats.xml_calls import Tags, XmlCalls
from server.chat.grammar import lark
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool, ToolChoice

BEGIN, END = "<tool_call>", "</tool_call>"
FUNCTION = "<function="


class Hermes(MarkedFormat):
    name = "hermes"
    thought: ClassVar[ThoughtMarkers | None] = THINK
    tokens = (BEGIN, END)

    def reader(self, calls: Calls, symbols: Symbols) -> CallReader:
        return TaggedCalls(calls, symbols, openings=(BEGIN,))

    def call_grammar(self, vocabulary: Vocabulary, tools: Sequence[Tool], choice: ToolChoice) -> CallGrammar | None:
        begin, end = lark.marker(vocabulary, BEGIN), lark.marker(vocabulary, END)
        rules = [
            ("calls", one_or_more("call", choice, "\n")),
            ("call", f'{begin} "\\n" body "\\n" {end}'),
            *json_bodies(tools, "arguments"),
        ]
        return CallGrammar(grammar(rules), (BEGIN,))


class Plain(Hermes):
    """A model whose template knows neither thoughts nor calls."""

    name = "plain"
    thought = None


class Think(Hermes):
    """DeepSeek R1 and other models that think between `<think>` and `</think>` and have no calls that are known."""

    name = "think"


def json_bodies(tools: Sequence[Tool], key: str) -> list[tuple[str, str]]:
    """The rule `body`, a JSON object with the name of one of the tools and its arguments under `key`."""
    rules = [("body", " | ".join(f"body_{index}" for index in range(len(tools))))]
    for index, tool in enumerate(tools):
        head = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{key}": '
        rules.append((f"body_{index}", f"{lark.literal(head)} arguments_{index} {lark.literal('}')}"))
        rules.append((f"arguments_{index}", json_arguments(tool)))
    return rules


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
