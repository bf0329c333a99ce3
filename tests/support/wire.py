"""Transcripts of models, read by the parser of their wire format, with a vocabulary that has the format's markers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.chat.channels import Piece, ReasoningPiece, TextPiece, ToolCallPiece
from server.chat.formats.choose import FORMATS
from server.chat.model_files import SamplingDefaults
from server.chat.tokenizers.vocabulary import Vocabulary, VocabularyTable
from server.chat.tools import Tool

# A token of text, for a parser that looks at markers only.
TEXT = 0

WEATHER = Tool(
    "get_weather",
    "The weather of a place.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"type": "string", "enum": ["C", "F"]},
            "days": {"type": "integer"},
        },
        "required": ["city"],
    },
)
WRITE = Tool(
    "write_file",
    "Writes a file.",
    {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "content": {"type": "string"},
            "mode": {"type": "integer"},
            "overwrite": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "options": {"type": "object"},
            "ratio": {"type": ["number", "null"]},
        },
        "required": ["path", "content"],
    },
)
NOTHING = Tool("list_files")
TOOLS = (WEATHER, WRITE, NOTHING)


@dataclass
class Answer:
    """What a client would have put together of an answer."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    # Whether each call was said to be whole.
    ended: list[bool] = field(default_factory=list)
    consumed: int = 0

    def take(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            self.consumed += piece.consumed
            match piece:
                case TextPiece():
                    assert piece.text
                    self.text += piece.text
                case ReasoningPiece():
                    assert piece.text
                    self.reasoning += piece.text
                case ToolCallPiece():
                    self._call(piece)

    def _call(self, piece: ToolCallPiece) -> None:
        if piece.id is not None:
            assert piece.index == len(self.calls) and piece.name
            self.calls.append((piece.name, ""))
            self.ids.append(piece.id)
            self.ended.append(False)
        assert piece.index == len(self.calls) - 1 and not self.ended[-1]
        name, arguments = self.calls[-1]
        self.calls[-1] = (name, arguments + piece.arguments)
        self.ended[-1] |= piece.ended

    @property
    def whole(self) -> tuple[str, str, list[tuple[str, str]], list[bool]]:
        return self.text, self.reasoning, self.calls, self.ended

    def called(self) -> list[tuple[str, dict[str, Any]]]:
        """The calls, all of them whole and their arguments objects."""
        assert all(self.ended)
        called = [(name, json.loads(arguments)) for name, arguments in self.calls]
        assert all(isinstance(arguments, dict) for _, arguments in called)
        return called


def vocabulary(markers: Sequence[str], hidden: Callable[[str], bool] = lambda marker: True) -> Vocabulary:
    """The 256 bytes, and each of `markers` as one token; those that are `hidden` show nothing."""
    pieces = [bytes([byte]) for byte in range(256)] + [marker.encode() for marker in markers]
    added = {marker: 256 + index for index, marker in enumerate(markers)}
    return Vocabulary(
        VocabularyTable.of(
            pieces,
            hidden=frozenset(token for marker, token in added.items() if hidden(marker)),
            added=added,
            eos_ids=frozenset(),
            strips_space=False,
            vocab_size=len(pieces),
            context_length=4096,
            defaults=SamplingDefaults(),
        )
    )


def tokens(text: str, known: Vocabulary, markers: Sequence[str]) -> list[tuple[int, str]]:
    """Each marker as its token, everything between as one piece of text."""
    spelled = [marker for marker in markers if known.marker(marker) is not None]
    pattern = re.compile(
        "|".join(f"({re.escape(marker)})" for marker in sorted(spelled, key=len, reverse=True)) or "(?!)"
    )
    found: list[tuple[int, str]] = []
    at = 0
    for match in pattern.finditer(text):
        if match.start() > at:
            found.append((TEXT, text[at : match.start()]))
        token = known.marker(match[0])
        assert token is not None
        found.append((token, "" if known.is_hidden(token) else match[0]))
        at = match.end()
    if at < len(text):
        found.append((TEXT, text[at:]))
    return found


def split(pieces: Iterable[tuple[int, str]], cuts: Callable[[str], Iterable[str]]) -> list[tuple[int, str]]:
    """The same with each text cut as `cuts` does; tokens that are markers stay whole."""
    return [
        (token, part) for token, text in pieces for part in (cuts(text) if token == TEXT else (text,)) if part or token
    ]


def read(
    name: str,
    pieces: Iterable[tuple[int, str]],
    known: Vocabulary,
    tools: Sequence[Tool] = TOOLS,
    *,
    prompt_tail: str = "",
    held: bool = False,
    cut: bool = False,
) -> Answer:
    channels = FORMATS[name].channels(known, tools, prompt_tail, held=held)
    answer = Answer()
    for token, text in pieces:
        answer.take(channels.push(token, text))
    answer.take(channels.finish("", cut))
    return answer
