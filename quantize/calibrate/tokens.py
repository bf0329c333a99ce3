"""From calibration text to chunks of tokens, of every kind the same number as far as there is text.

Conversations, and plain texts as the answer to a request, are rendered in the model's own template: raw text says
little about a model that was made for conversations. Documents of a kind follow each other and are cut every LENGTH
tokens, so most chunks begin within a text, as raw text does; but with the beginning-of-sequence token of a model that
has one, without which Gemma knows no text: its perplexity is two to seven times as high.
"""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quantize.calibrate.corpus import CalibrationText, CalibrationTextError, Document, is_held_back

LENGTH = 512
# A kind with less text than a chunk is one short chunk, if it has this many tokens.
_FEWEST = 32
# Characters: a tokenizer takes up to 200 bytes for each of those that it is given at once.
_AT_ONCE = 1_000_000
# Chunks that few are taken of are spread over a kind's text: multiples of the golden ratio fill any interval evenly.
_GOLDEN = 0.6180339887498949


class Tokenizer(Protocol):
    has_chat_template: bool

    def encode(self, text: str, **options: Any) -> list[int]: ...
    def apply_chat_template(self, messages: list[Any], **options: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class TextChunk:
    kind: str
    tokens: tuple[int, ...]
    held_back: bool


def cut(text: CalibrationText, tokenizer: Tokenizer, wanted: int) -> list[TextChunk]:
    """`wanted` tokens or somewhat more, or all there are; kinds take turns. Raises CalibrationTextError: none."""
    streams: dict[str, array[int]] = defaultdict(_no_tokens)
    for document in text.documents:
        streams[document.kind].extend(_tokens(document, tokenizer))
    begin = beginning(tokenizer)
    left = {kind: _spread(_pieces(tokens, begin)) for kind, tokens in sorted(streams.items())}
    made: list[TextChunk] = []
    taken = dict.fromkeys(left, 0)
    while any(left.values()) and sum(len(chunk.tokens) for chunk in made) < wanted:
        for kind, pieces in left.items():
            if pieces:
                made.append(TextChunk(kind, tuple(pieces.pop(0)), is_held_back(kind, taken[kind])))
                taken[kind] += 1
    if all(chunk.held_back for chunk in made):
        raise CalibrationTextError(f"The calibration text has fewer than {_FEWEST} tokens.")
    return made


def beginning(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before every text: the beginning-of-sequence token, or nothing."""
    marked, plain = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    return list(marked[:1]) if list(marked[:1]) != list(plain[:1]) else []


def begun(tokenizer: Tokenizer, text: str) -> list[int]:
    """`text` to be gone on with: some tokenizers put an end-of-sequence token behind every text."""
    return [*beginning(tokenizer), *tokenizer.encode(text, add_special_tokens=False)]


def _no_tokens() -> array[int]:
    """A user's text may have a hundred times the tokens that are wanted: four bytes each."""
    return array("I")


def _pieces(tokens: array[int], begin: list[int]) -> list[array[int]]:
    """Of LENGTH tokens each, `begin` among them."""
    if len(tokens) < LENGTH:
        return [tokens] if len(tokens) >= _FEWEST else []
    pieces: list[array[int]] = []
    at = 0
    while True:
        before = begin if tokens[at : at + len(begin)].tolist() != begin else []
        end = at + LENGTH - len(before)
        if end > len(tokens):
            return pieces
        pieces.append(array("I", before) + tokens[at:end])
        at = end


def _spread(pieces: list[array[int]]) -> list[array[int]]:
    order = sorted(range(len(pieces)), key=lambda number: number * _GOLDEN % 1)
    return [pieces[number] for number in order]


def _tokens(document: Document, tokenizer: Tokenizer) -> Iterator[int]:
    if not tokenizer.has_chat_template:
        return _encoded(document.whole, tokenizer)
    if document.messages is not None:
        for messages in (document.messages, [_plain(message) for message in document.messages]):
            rendered = _rendered(tokenizer, messages, document.tools)
            if rendered is not None:
                return _encoded(rendered, tokenizer, add_special_tokens=False)
    ask = {"role": "user", "content": f"Write a text of the kind: {document.kind}."}
    rendered = _rendered(tokenizer, [ask, {"role": "assistant", "content": document.whole}], None)
    if rendered is None:
        return _encoded(document.whole, tokenizer)
    return _encoded(rendered, tokenizer, add_special_tokens=False)


def _encoded(text: str, tokenizer: Tokenizer, *, add_special_tokens: bool = True) -> Iterator[int]:
    at = 0
    while at < len(text):
        end = at + _AT_ONCE
        if end < len(text):
            # Before a line or a word, with which tokens begin anew.
            end = next((found for mark in "\n " if (found := text.rfind(mark, at + 1, end)) > 0), end)
        yield from tokenizer.encode(text[at:end], add_special_tokens=add_special_tokens and at == 0)
        at = end


def _rendered(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], tools: Any) -> str | None:
    """None where the template refuses: it is a program of the model's makers, and may know no tools or no such role."""
    options = {"tools": list(tools)} if tools else {}
    try:
        return str(tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False, **options))
    except Exception:
        return None


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """For templates that know text alone: calls and results as JSON in the content."""
    calls = [call.get("function") for call in message.get("tool_calls") or ()]
    parts = [part for part in (message.get("content"), *calls) if part is not None]
    said = [part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in parts]
    role = message["role"] if message["role"] != "tool" else "user"
    return {"role": role, "content": "\n".join(said)}
