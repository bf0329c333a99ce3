"""What a model is judged on: passages of several kinds, in the form of conversations with an answer.

The project's own text ships in `data/`. A plain text is an answer to the request to write it, because raw text says
nothing about a model that was made for conversations; a model without a chat template has the text alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.calibrate.tokens import beginning, begun
from quantize.errors import SourceError
from quantize.files import read_text
from quantize.json_lines import json_lines

OWN = Path(__file__).parent / "data" / "texts.jsonl"
# Kinds of the calibration text that ships, for a model that was not calibrated; all others are uncovered.
COVERED = ("prose", "code", "chat", "tools", "reasoning", "scripts", "reference", "documentation")
_ASK = "Write the text that I have in mind."
_FEWEST = 4


@dataclass(frozen=True, slots=True)
class Text:
    """`messages` end with the answer; those of a `plain` text are one request and itself."""

    kind: str
    messages: Sequence[Mapping[str, Any]]
    plain: bool = False

    @property
    def whole(self) -> str:
        """Without what only asks for it."""
        if self.plain:
            return str(self.messages[-1]["content"])
        return "\n".join(str(message["content"]) for message in self.messages)


@dataclass(frozen=True, slots=True)
class Passage:
    """Token ids, and how many of them are given: what follows are the tokens of the answer."""

    kind: str
    tokens: Sequence[int]
    given: int


def read_texts(file: Path) -> list[Text]:
    """A .jsonl of {"kind", "messages" or "text"} a line, or any other file as one plain text. Raises SourceError."""
    if file.suffix != ".jsonl":
        return [_text({"text": read_text(file, SourceError)}, f"{file}")]
    found = [_text(read, where) for where, read in json_lines(file, SourceError)]
    if not found:
        raise SourceError(f"{file} is empty.")
    return found


def passages(texts: Sequence[Text], tokenizer: Any, length: int) -> list[Passage]:
    """At most `length` tokens each; a longer answer is cut into several passages after the same request."""
    found: list[Passage] = []
    for text in texts:
        given, answer = _tokens(text, tokenizer)
        if len(given) > length // 2:
            begin = beginning(tokenizer)
            begin = begin if given[: len(begin)] == begin else []
            given = [*begin, *given[len(begin) - length // 2 :]]
        room = length - len(given)
        for start in range(0, len(answer), room):
            piece = answer[start : start + room]
            if len(piece) >= _FEWEST:
                found.append(Passage(text.kind, [*given, *piece], len(given)))
    return found


def _tokens(text: Text, tokenizer: Any) -> tuple[list[int], list[int]]:
    *asked, answer = text.messages
    if not tokenizer.has_chat_template:
        # Something must come before the first token that is judged.
        ids = begun(tokenizer, text.whole)
        return ids[:1], ids[1:]
    given = _rendered(tokenizer, asked)
    whole = given + str(answer["content"])
    before = list(tokenizer.encode(given, add_special_tokens=False))
    return before, list(tokenizer.encode(whole, add_special_tokens=False))[len(before) :]


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    try:
        # Thinking is switched off by name: mlx-lm would turn it on.
        return str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        )
    except Exception as error:  # A template is a program of the model's makers: it may raise anything.
        raise SourceError(f"The model's chat template cannot render the text: {error}") from error


def _text(value: Mapping[str, Any], where: str) -> Text:
    kind, ask = value.get("kind", "given"), value.get("ask", _ASK)
    if not isinstance(kind, str) or not isinstance(ask, str):
        raise SourceError(f"{where}: kind and ask are strings.")
    if isinstance(value.get("text"), str) and value["text"].strip():
        asked = [{"role": "user", "content": ask}, {"role": "assistant", "content": value["text"]}]
        return Text(kind, asked, plain=True)
    messages = value.get("messages")
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise SourceError(f'{where}: has neither "text" nor "messages" of role and content.')
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise SourceError(f"{where}: the last of two or more messages must be the assistant's.")
    return Text(kind, messages)


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
