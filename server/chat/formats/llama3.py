"""Llama 3.1 to 3.3: JSON with a name and parameters as the whole answer, or behind `<|python_tag|>`."""

from __future__ import annotations

from collections.abc import Sequence

from server.chat.formats.family import MarkedFormat
from server.chat.formats.format import CallGrammar
from server.chat.formats.hermes import json_bodies
from server.chat.formats.inlet import Broken, Cut, Steps, Stops
from server.chat.formats.json_calls import JsonCalls
from server.chat.formats.loose_json import JsonStyle, LooseJson
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.rules import grammar
from server.chat.formats.schema import arguments_schema
from server.chat.formats.symbols import Symbols
from server.chat.grammar import lark
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool, ToolChoice

TAG = "<|python_tag|>"


class Llama3(MarkedFormat):
    """Its templates have room for one call in a turn."""

    name = "llama3"
    tokens = (TAG,)

    def call_grammar(self, vocabulary: Vocabulary, tools: Sequence[Tool], choice: ToolChoice) -> CallGrammar | None:
        rules = [("calls", f"{lark.marker(vocabulary, TAG)}? body"), *json_bodies(tools, "parameters")]
        # A brace alone begins many an answer that is no call.
        return CallGrammar(grammar(rules), (TAG,))

    def reader(self, calls: Calls, symbols: Symbols) -> CallReader:
        return BareJson(calls, symbols)


class BareJson:
    bare = "{"

    def __init__(self, calls: Calls, symbols: Symbols) -> None:
        self._calls = calls
        self._json = JsonCalls(calls, ())
        self.openings = (symbols.of(TAG),)

    def calls(self, opening: str) -> Steps[None]:
        source = self._calls.source
        yield from source.skip()
        if (yield from source.peek()) in ("{", "["):
            yield from self._json.read()
        else:
            yield from self._python()

    def _python(self) -> Steps[None]:
        """`name.call(query="x")`, as the model calls what it knows from its training."""
        source, out = self._calls.source, self._calls.out
        name: list[str] = []
        _, stop = yield from source.until(Stops("(", "\n"), name.append)
        if stop != "(":
            raise Cut if source.cut and not stop else Broken
        tool = self._calls.tool("".join(name).strip().removesuffix(".call"))
        source.take(1)
        out.begin(tool.name)
        yield from LooseJson(source, JsonStyle(), out.arguments).members(arguments_schema(tool), "(")
        out.end()
