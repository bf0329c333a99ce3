"""A prompt as token ids: what the text process makes and the HTTP process passes on, without their libraries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from server.chat.parts import Role


class End(NamedTuple):
    """An offset, in characters or in tokens, at which a message of `role` ends."""

    offset: int
    role: Role


class EncodedQuestion(NamedTuple):
    """`ids` go on from the prompt that all questions share; each of `options` goes on from there."""

    ids: list[int]
    options: list[list[int]]


@dataclass(frozen=True, slots=True)
class EncodedInquiry:
    """`ids` and `boundaries` of what all questions share, as in `EncodedPrompt`. `text`: the first question's."""

    ids: list[int]
    boundaries: list[End]
    questions: list[EncodedQuestion]
    text: str


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """`boundaries`: where in `ids` the system message and the latest messages end, ascending; one that is not certain
    is absent. `offsets`: the character of `text` at which each token of a raw prompt begins, where it was asked for.
    `stops`: tokens that end the answer beside those that end every one. `goes_on`: a later prompt may begin with this
    one and its answer. `truncated`: something was left out of it."""

    ids: list[int]
    boundaries: list[End]
    text: str
    offsets: list[int] | None = None
    stops: list[int] = field(default_factory=list)
    goes_on: bool = True
    truncated: bool = False
