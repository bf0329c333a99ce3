"""Mistral: `[TOOL_CALLS]` with a list of JSON objects, or with a name and `[ARGS]` for each call."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence

from server.chat.formats.family import MarkedFormat
from server.chat.formats.format import CallGrammar, ThoughtMarkers
from server.chat.formats.hermes import json_bodies
from server.chat.formats.inlet import Broken, Cut, Steps, Stops
from server.chat.formats.json_calls import JsonCalls
from server.chat.formats.loose_json import JsonStyle, LooseJson
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.rules import grammar, json_arguments, one_or_more
from server.chat.formats.schema import arguments_schema
from server.chat.formats.symbols import Symbols
from server.chat.grammar import lark
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool, ToolChoice

CALLS, ARGUMENTS, ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
ID_LENGTH = 9


def new_id() -> str:
    """Its templates refuse any other length."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(ID_LENGTH))


class Mistral(MarkedFormat):
    name = "mistral"
    thought = ThoughtMarkers("[THINK]", "[/THINK]", "[/THINK]")
    tokens = (CALLS, ARGUMENTS, ID)
    new_id = staticmethod(new_id)

    def call_grammar(self, vocabulary: Vocabulary, tools: Sequence[Tool], choice: ToolChoice) -> CallGrammar | None:
        """By names where the vocabulary has the marker for that, else as a list."""
        begin = lark.marker(vocabulary, CALLS)
        if vocabulary.marker(ARGUMENTS) is None:
            rules = [
                ("calls", f'{begin} " "? "[" {one_or_more("body", choice, ", ")} "]"'),
                *json_bodies(tools, "arguments"),
            ]
            return CallGrammar(grammar(rules), (CALLS,))
        names = [f"function_{index}" for index in range(len(tools))]
        # Some of its models put an id of the call between name and arguments.
        has_id = vocabulary.marker(ID) is not None
        call_id = f"({lark.marker(vocabulary, ID)} {lark.regex(f'[A-Za-z0-9]{{{ID_LENGTH}}}')})? " if has_id else ""
        rules = [("calls", one_or_more("call", choice)), ("call", f"{begin} ({' | '.join(names)})")]
        for name, tool in zip(names, tools, strict=True):
            arguments = f"{call_id}{lark.marker(vocabulary, ARGUMENTS)} {name}_arguments"
            rules.append((name, f"{lark.literal(tool.name)} {arguments}"))
            rules.append((f"{name}_arguments", json_arguments(tool)))
        return CallGrammar(grammar(rules), (CALLS,))

    def reader(self, calls: Calls, symbols: Symbols) -> CallReader:
        return ListedOrNamed(calls, symbols)


class ListedOrNamed:
    bare = ""

    def __init__(self, calls: Calls, symbols: Symbols) -> None:
        self._calls = calls
        self._json = JsonCalls(calls, ())
        self._begin, self._arguments, self._id = map(symbols.of, (CALLS, ARGUMENTS, ID))
        self.openings = (self._begin,)

    def calls(self, opening: str) -> Steps[None]:
        source = self._calls.source
        yield from source.skip()
        if (yield from source.peek()) in ("[", "{") and not (yield from source.starts(self._begin)):
            yield from self._json.read()
        else:
            yield from self._named()

    def _named(self) -> Steps[None]:
        source, out = self._calls.source, self._calls.out
        name = yield from self._until(self._arguments, self._id, "{")
        tool = self._calls.tool(name)
        if (yield from source.accept(self._id)):
            yield from self._until(self._arguments, "{")
        yield from source.accept(self._arguments)
        yield from source.skip()
        if not (yield from source.accept("{")):
            raise Cut if source.ended and source.cut else Broken
        out.begin(tool.name)
        style = JsonStyle((self._begin,))
        yield from LooseJson(source, style, out.arguments).members(arguments_schema(tool), "{")
        out.end()

    def _until(self, *stops: str) -> Steps[str]:
        found: list[str] = []
        _, stop = yield from self._calls.source.until(Stops(*stops), found.append)
        if not stop:
            raise Cut if self._calls.source.cut else Broken
        return "".join(found)
