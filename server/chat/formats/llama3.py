"""Llama 3.1 to 3.3: JSON with a name and parameters as the whole answer, or behind `<|python_tag|>`."""

from __future__ import annotations

from server.chat.formats.family import MarkedFormat
from server.chat.formats.inlet import Broken, Cut, Steps, Stops
from server.chat.formats.json_calls import JsonCalls
from server.chat.formats.loose_json import JsonStyle, LooseJson
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.schema import arguments_schema
from server.chat.formats.symbols import Symbols

TAG = "<|python_tag|>"


class Llama3(MarkedFormat):
    name = "llama3"
    tokens = (TAG,)

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
