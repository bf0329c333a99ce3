"""What the formats with markers have in common: from their markers and their reader of calls to channels. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from server.chat.channels import Channels, TextOnly
from server.chat.formats.format import Arguments, CallGrammar, ThoughtMarkers
from server.chat.formats.inlet import Inlet
from server.chat.formats.marked import MarkedChannels
from server.chat.formats.outlet import Outlet, new_call_id
from server.chat.formats.reader import CallReader, Calls
from server.chat.formats.symbols import Symbols
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool, ToolChoice

THINK = ThoughtMarkers("<think>", "</think>", "\n</think>\n\n")


class MarkedFormat(ABC):
    """`tokens`: the markers, of which many are tokens. No marker ever stands in a text; `spelled` has what stands there
    for one, where that is not nothing, when a call comes back as text."""

    name: ClassVar[str]
    arguments: ClassVar[Arguments] = "json"
    thought: ClassVar[ThoughtMarkers | None] = None
    tokens: ClassVar[tuple[str, ...]] = ()
    spelled: ClassVar[Mapping[str, str]] = {}
    new_id: ClassVar[Callable[[], str]] = new_call_id

    def channels(
        self, vocabulary: Vocabulary, tools: Sequence[Tool], prompt_tail: str, *, held: bool = False
    ) -> Channels:
        thought = self.thought
        if thought is None and not tools and not any(map(vocabulary.marker, self.tokens)):
            return TextOnly()
        thought_tokens = (thought.begin, thought.end) if thought else ()
        symbols = Symbols(vocabulary, (*self.tokens, *thought_tokens))
        source = Inlet(symbols)
        out = Outlet(source, type(self).new_id)
        return MarkedChannels(
            source,
            out,
            thought and ThoughtMarkers(symbols.of(thought.begin), symbols.of(thought.end), thought.closing),
            self.reader(Calls(source, out, tools), symbols) if tools else None,
            begun=thought is not None and prompt_tail.rstrip().endswith(thought.begin.rstrip()),
            held=held,
            # Without tools nobody told the model how calls are spelled: only its own tokens are markers then.
            markers={
                symbols.of(token): self.spelled.get(token, "")
                for token in self.tokens
                if tools or symbols.is_token(token)
            },
        )

    @abstractmethod
    def reader(self, calls: Calls, symbols: Symbols) -> CallReader:
        """Reads the calls of one answer."""

    def answer_opening(self, vocabulary: Vocabulary) -> str:
        return ""

    def call_grammar(self, vocabulary: Vocabulary, tools: Sequence[Tool], choice: ToolChoice) -> CallGrammar | None:
        return None
