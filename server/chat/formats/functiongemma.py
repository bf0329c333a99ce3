"""FunctionGemma: the calls of Gemma 4 between other markers, and no thoughts."""

from __future__ import annotations

from server.chat.formats.family import MarkedFormat
from server.chat.formats.gemma4 import GemmaCalls
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.symbols import Symbols

BEGIN, END, MARK = "<start_function_call>", "<end_function_call>", "<escape>"


class FunctionGemma(MarkedFormat):
    name = "functiongemma"
    tokens = (BEGIN, END, MARK)
    spelled = {MARK: '"'}  # noqa: RUF012 - constant

    def reader(self, calls: Calls, symbols: Symbols) -> CallReader:
        return GemmaCalls(calls, *map(symbols.of, (BEGIN, END, MARK)))
