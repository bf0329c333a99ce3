"""MiniMax M2: `<invoke name="f">` with a tag for each parameter, all of them in one `<minimax:tool_call>`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from server.chat.formats.family import THINK, MarkedFormat
from server.chat.formats.format import Arguments, CallGrammar
from server.chat.formats.inlet import Steps
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.rules import grammar
from server.chat.formats.symbols import Symbols
from server.chat.formats.xml_calls import Around, Tags, XmlCalls, argument_rules
from server.chat.grammar import lark
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool, ToolChoice

BEGIN, END = "<minimax:tool_call>", "</minimax:tool_call>"
INVOKE = "<invoke name="


_AROUND = Around(lambda name: f'"<parameter name=\\"" {name} "\\">"', "</parameter>", after='"\\n"')


class MiniMaxM2(MarkedFormat):
    name = "minimax-m2"
    arguments: ClassVar[Arguments] = "bare"
    thought = THINK
    tokens = (BEGIN, END)

    def call_grammar(self, vocabulary: Vocabulary, tools: Sequence[Tool], choice: ToolChoice) -> CallGrammar | None:
        begin, end = lark.marker(vocabulary, BEGIN), lark.marker(vocabulary, END)
        names = [f"invoke_{index}" for index in range(len(tools))]
        rules = [
            ("calls", f'({begin} "\\n")? {"invoke+" if choice.parallel else "invoke"} {end}'),
            ("invoke", f'({" | ".join(names)}) "</invoke>\\n"'),
        ]
        for name, tool in zip(names, tools, strict=True):
            head = lark.literal(f'{INVOKE}"{tool.name}">')
            rules.append((name, f'{head} "\\n"? {name}_arguments'))
            rules += argument_rules(f"{name}_arguments", tool, _AROUND, vocabulary)
        return CallGrammar(grammar(rules), (BEGIN, INVOKE))

    def reader(self, calls: Calls, symbols: Symbols) -> CallReader:
        return Invocations(calls, symbols)


class Invocations:
    bare = ""

    def __init__(self, calls: Calls, symbols: Symbols) -> None:
        self._xml = XmlCalls(calls, Tags(INVOKE, "</invoke>", "<parameter name=", "</parameter>", symbols.of(END)))
        self.openings = (symbols.of(BEGIN), INVOKE)

    def calls(self, opening: str) -> Steps[None]:
        yield from self._xml.read(begun=opening == INVOKE)
