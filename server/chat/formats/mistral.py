"""Mistral: `[TOOL_CALLS]` with a list of JSON objects, or with a name and `[ARGS]` for each call."""

from __future__ import annotations

import secrets
import string

from server.chat.formats.family import MarkedFormat
from server.chat.formats.format import ThoughtMarkers
from server.chat.formats.inlet import Broken, Cut, Steps, Stops
from server.chat.formats.json_calls import JsonCalls
from server.chat.formats.loose_json import JsonStyle, LooseJson
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.schema import arguments_schema
from server.chat.formats.symbols import Symbols

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
