"""What a wire format of a model is: the markers of its reasoning, the grammar of its calls, the parser of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from server.chat.channels import Channels
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool, ToolChoice

# How the arguments of a call are written: as JSON, as Gemma writes values, or as bare text between tags.
Arguments = Literal["json", "gemma", "bare"]


@dataclass(frozen=True, slots=True)
class ThoughtMarkers:
    """`begin` and `end` enclose a thought; `closing` ends one early, in words that the model goes on from."""

    begin: str
    end: str
    closing: str


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """Lark rules for the calls of an answer, the first of them named `calls`: one call, or several where `ToolChoice`
    allows it, with markers. `opening`: the texts that begin a call, markers first; a lazy grammar waits for them."""

    lark: str
    opening: tuple[str, ...]


class WireFormat(Protocol):
    @property
    def name(self) -> str:
        """As the settings and the log name it."""
        ...

    @property
    def tokens(self) -> tuple[str, ...]:
        """Its markers, each of which may be a token."""
        ...

    @property
    def arguments(self) -> Arguments:
        """What a schema can be held by."""
        ...

    @property
    def thought(self) -> ThoughtMarkers | None:
        """None for models that do not reason."""
        ...

    def answer_opening(self, vocabulary: Vocabulary) -> str:
        """Lark terms of the markers in front of the answer's own text, behind a thought and without one; mostly ""."""
        ...

    def channels(
        self, vocabulary: Vocabulary, tools: Sequence[Tool], prompt_tail: str, *, held: bool = False
    ) -> Channels:
        """The parser of one answer. `tools` are those that may be called. `prompt_tail`: the prompt's last characters,
        which may have opened a thought.

        `held`: a grammar holds the calls, so that what has begun ends well, and their arguments are passed on as they
        come. Without one a call is passed on when it is whole, since one that breaks is text.
        """
        ...

    def call_grammar(self, vocabulary: Vocabulary, tools: Sequence[Tool], choice: ToolChoice) -> CallGrammar | None:
        """None where the format has no calls. `tools` are those that may be called, at least one."""
        ...
