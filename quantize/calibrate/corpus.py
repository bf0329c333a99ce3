"""The text that a calibration reads: what ships with the project, or the user's own, by kind.

A document is plain text or a conversation, which is rendered in the model's template later. Some is held back from
every solver, for the guard: one chunk of tokens in eight of every kind, and one whole kind, so that the guard also
judges on text of a kind that no solver saw.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.errors import QuantizeError
from quantize.files import read_text
from quantize.json_lines import json_lines

SHIPPED = Path(__file__).parent / "text"
HELD_BACK_KIND = "law"
_SHIPPED_FILES = sorted(SHIPPED.glob("*.jsonl"))
_ONE_CHUNK_IN = 8
_LINES = ".jsonl"
_SUFFIXES = (_LINES, ".txt", ".md")


class CalibrationTextError(QuantizeError):
    """The user's calibration text cannot be read, or is not in a form that is known."""


@dataclass(frozen=True, slots=True)
class Document:
    """Either `text`, or `messages` in OpenAI's form (roles system, user, assistant, tool) with the `tools` declared.

    Of messages: `content` is text or, in a tool's result, any JSON; `tool_calls` have `arguments` as an object; a
    thought is in `reasoning_content`.
    """

    kind: str
    text: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None

    @property
    def whole(self) -> str:
        """All that is said in it, for counts and overlap."""
        return self.text if self.text is not None else "\n".join(_strings([self.messages, self.tools or []]))


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """`sha256` is of the documents in their order; how files are named or laid out does not change it."""

    documents: Sequence[Document]
    sha256: str

    @property
    def kinds(self) -> Mapping[str, int]:
        """kind -> documents."""
        return dict(Counter(document.kind for document in self.documents))


def calibration_text(data: Path | None = None) -> CalibrationText:
    """The shipped text, or that of `data`: a .jsonl or text file, or a folder of such. Raises CalibrationTextError.

    A user's data is joined by the shipped kind that is held back, unless it has one of that name itself.
    """
    documents = [d for path in _SHIPPED_FILES for d in _read(path)] if data is None else list(_read(data))
    if data is not None and HELD_BACK_KIND not in {document.kind for document in documents}:
        documents += _read(SHIPPED / f"{HELD_BACK_KIND}.jsonl")
    if all(document.kind == HELD_BACK_KIND for document in documents):
        raise CalibrationTextError(f"{data} has no text to calibrate with.")
    plain = [[d.kind, d.text, d.messages, d.tools] for d in documents]
    canonical = json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return CalibrationText(documents, hashlib.sha256(canonical.encode()).hexdigest())


def is_held_back(kind: str, chunk: int) -> bool:
    """Whether a chunk is for the guard only. `chunk`: its number, from 0, among the chunks of its kind."""
    return kind == HELD_BACK_KIND or chunk % _ONE_CHUNK_IN == _ONE_CHUNK_IN - 1


def _read(path: Path) -> Iterator[Document]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.is_dir())
        if not files:
            raise CalibrationTextError(f"{path} has no .jsonl, .txt or .md file.")
        for file in files:
            yield from _read(file)
        return
    if path.exists() and path.suffix.lower() not in _SUFFIXES:
        raise CalibrationTextError(f"{path} does not end in .jsonl, .txt or .md.")
    if path.suffix.lower() == _LINES:
        for where, read in json_lines(path, CalibrationTextError):
            yield _document(read, path.stem, where)
    elif (content := read_text(path, CalibrationTextError)).strip():
        yield Document("plain", text=content)


def _document(read: Mapping[str, Any], kind_of_file: str, where: str) -> Document:
    def check(fits: bool, what: str) -> None:
        if not fits:
            raise CalibrationTextError(f"{where}: {what}.")

    kind = read.get("kind", kind_of_file)
    check(isinstance(kind, str), "kind is not a string")
    if isinstance(text := read.get("text"), str):
        check(bool(text.strip()), "holds no text")
        return Document(kind, text=text)
    messages: Any = read.get("messages")
    tools: Any = None
    if isinstance(prompt := read.get("prompt"), str) and isinstance(completion := read.get("completion"), str):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    else:
        tools = read.get("tools")
    check(messages is not None, "has none of text, messages, or prompt and completion")
    check(
        isinstance(messages, list) and bool(messages) and all(map(_has_role, messages)),
        "messages is not a list of objects with a role",
    )
    check(tools is None or _are_objects(tools), "tools is not a list of objects")
    check(all(map(_says_something, messages)), "a message has neither content nor tool calls")
    messages = [_with_text(message) for message in messages]
    check(all(map(_has_text, messages)), "the content of a message is neither text nor parts of text")
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    check(all(map(_is_call, calls)), "a tool call is not a function with a name and an object of arguments")
    said = _strings([calls, [message.get("content") for message in messages]])
    check(any(one.strip() for one in said), "holds no text")
    return Document(kind, messages=messages, tools=tools)


def _has_role(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)


def _says_something(message: Mapping[str, Any]) -> bool:
    calls = message.get("tool_calls")
    return (calls is None or _are_objects(calls)) and bool(calls or message.get("content") is not None)


def _with_text(message: dict[str, Any]) -> dict[str, Any]:
    """Parts of text as one; a tool's result is any JSON."""
    parts = message.get("content")
    if message["role"] == "tool" or not isinstance(parts, list):
        return message
    texts = [part["text"] for part in parts if _is_text(part)]
    return {**message, "content": "".join(texts)} if len(texts) == len(parts) else message


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _has_text(message: Mapping[str, Any]) -> bool:
    return message["role"] == "tool" or isinstance(message.get("content"), str | None)


def _is_call(call: Mapping[str, Any]) -> bool:
    match call.get("function"):
        case {"name": str(), "arguments": dict()}:
            return True
        case {"name": str(), **rest}:
            return "arguments" not in rest
    return False


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _strings(value: Any) -> Iterator[str]:
    """Every text and number within, in order; names of fields are no text."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif value is not None:
        yield str(value)
