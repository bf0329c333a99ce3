"""Qwen3-Coder, Qwen 3.5 and Nemotron 3: tags for the function and each of its parameters, in `<tool_call>`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from server.chat.formats.format import Arguments, CallGrammar
from server.chat.formats.hermes import BEGIN, END, FUNCTION, Hermes, TaggedCalls
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.rules import grammar, one_or_more
from server.chat.formats.symbols import Symbols
from server.chat.formats.xml_calls import Around, argument_rules
from server.chat.grammar import lark
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool, ToolChoice

_AROUND = Around(lambda name: f'"<parameter=" {name} ">\\n"', "</parameter>", '"\\n"', '"\\n"')


class Qwen3Coder(Hermes):
    """Its models leave `<tool_call>` out at times, and begin with the tag of the function."""

    name = "qwen3-coder"
    arguments: ClassVar[Arguments] = "bare"

    def call_grammar(self, vocabulary: Vocabulary, tools: Sequence[Tool], choice: ToolChoice) -> CallGrammar | None:
        begin, end = lark.marker(vocabulary, BEGIN), lark.marker(vocabulary, END)
        names = [f"function_{index}" for index in range(len(tools))]
        rules = [
            ("calls", one_or_more("call", choice, "\n")),
            ("call", f'({begin} "\\n")? ({" | ".join(names)}) "</function>\\n" {end}'),
        ]
        for name, tool in zip(names, tools, strict=True):
            rules.append((name, f'{lark.literal(f"{FUNCTION}{tool.name}>")} "\\n" {name}_arguments'))
            rules += argument_rules(f"{name}_arguments", tool, _AROUND, vocabulary)
        return CallGrammar(grammar(rules), (BEGIN, FUNCTION))

    def reader(self, calls: Calls, symbols: Symbols) -> CallReader:
        return TaggedCalls(calls, symbols, openings=(BEGIN, FUNCTION))
