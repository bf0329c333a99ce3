"""MiniMax M2: `<invoke name="f">` with a tag for each parameter, all of them in one `<minimax:tool_call>`."""

from __future__ import annotations

from server.chat.formats.family import THINK, MarkedFormat
from server.chat.formats.inlet import Steps
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.symbols import Symbols
from server.chat.formats.xml_calls import Tags, XmlCalls

BEGIN, END = "<minimax:tool_call>", "</minimax:tool_call>"
INVOKE = "<invoke name="


class MiniMaxM2(MarkedFormat):
    name = "minimax-m2"
    thought = THINK
    tokens = (BEGIN, END)

    def reader(self, calls: Calls, symbols: Symbols) -> CallReader:
        return Invocations(calls, symbols)


class Invocations:
    bare = ""

    def __init__(self, calls: Calls, symbols: Symbols) -> None:
        self._xml = XmlCalls(calls, Tags(INVOKE, "</invoke>", "<parameter name=", "</parameter>", symbols.of(END)))
        self.openings = (symbols.of(BEGIN), INVOKE)

    def calls(self, opening: str) -> Steps[None]:
        yield from self._xml.read(begun=opening == INVOKE)
