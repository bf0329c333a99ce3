"""Qwen3-Coder, Qwen 3.5 and Nemotron 3: tags for the function and each of its parameters, in `<tool_call>`."""

from __future__ import annotations

from server.chat.formats.hermes import BEGIN, FUNCTION, Hermes, TaggedCalls
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.symbols import Symbols


class Qwen3Coder(Hermes):
    """Its models leave `<tool_call>` out at times, and begin with the tag of the function."""

    name = "qwen3-coder"

    def reader(self, calls: Calls, symbols: Symbols) -> CallReader:
        return TaggedCalls(calls, symbols, openings=(BEGIN, FUNCTION))
