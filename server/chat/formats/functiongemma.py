"""FunctionGemma: the calls of Gemma 4 between other markers, and no thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from server.chat.formats.family import MarkedFormat
from server.chat.formats.format import Arguments, CallGrammar
from server.chat.formats.gemma4 import GemmaCalls, gemma_grammar
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.symbols import Symbols
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool, ToolChoice

BEGIN, END, MARK = "<start_function_call>", "<end_function_call>", "<escape>"


class FunctionGemma(MarkedFormat):
    name = "functiongemma"
    arguments: ClassVar[Arguments] = "gemma"
    tokens = (BEGIN, END, MARK)
    spelled = {MARK: '"'}  # noqa: RUF012 - constant

    def call_grammar(self, vocabulary: Vocabulary, tools: Sequence[Tool], choice: ToolChoice) -> CallGrammar | None:
        return gemma_grammar(vocabulary, tools, choice, BEGIN, END, MARK)

    def reader(self, calls: Calls, symbols: Symbols) -> CallReader:
        return GemmaCalls(calls, *map(symbols.of, (BEGIN, END, MARK)))
