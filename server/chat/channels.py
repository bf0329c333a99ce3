"""The channels of an answer: which of its tokens are text, which reasoning, which a tool call. Pure.

Models mark their channels, most of them with special tokens that show no text. So a channel parser runs after
detokenizing, where it is given each token with the text that the token completed, and before the stop strings, which
look at text only. The parser of one answer is one object that remembers where it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The next characters of the answer itself. `consumed`: see `Channels`."""

    text: str
    consumed: int


@dataclass(frozen=True, slots=True)
class ReasoningPiece:
    """The next characters of the model's reasoning."""

    text: str
    consumed: int


@dataclass(frozen=True, slots=True)
class ToolCallPiece:
    """The next piece of call number `index`: `id` and `name` with its first, then the JSON text of its arguments.

    `ended`: the call is whole, and its arguments are a JSON object.
    """

    index: int
    consumed: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    ended: bool = False


Piece = TextPiece | ReasoningPiece | ToolCallPiece


class Channels(Protocol):
    """Sorts the tokens of one answer into pieces of its channels.

    It may hold text back until it knows which channel that belongs to, and it leaves out the markers. `consumed` of a
    piece counts the characters of the answer that the piece accounts for: those of left-out markers and space before
    it, and its own, which come last. It says which tokens a piece is made of. `reasoning`: a thought is open.
    """

    @property
    def reasoning(self) -> bool: ...

    def push(self, token: int, text: str) -> Iterable[Piece]:
        """The pieces that are certain now. `text`: what `token` completed, "" for a special token."""
        ...

    def finish(self, text: str, cut: bool = False) -> Iterable[Piece]:
        """What was held back, now that the answer has ended. `text` stands for a last, incomplete character.

        `cut`: it ended for want of tokens, so that a call that is not whole stays as it is.
        """
        ...


class TextOnly:
    """The channels of a model without markers: everything is text."""

    reasoning = False

    def push(self, token: int, text: str) -> Iterable[Piece]:
        return (TextPiece(text, len(text)),) if text else ()

    def finish(self, text: str, cut: bool = False) -> Iterable[Piece]:
        return (TextPiece(text, len(text)),) if text else ()
