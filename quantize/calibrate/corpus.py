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

SHIPPED = Path(__file__).parent / "text"
HELD_BACK_KIND = "law"
_SHIPPED_FILES = sorted(SHIPPED.glob("*.jsonl"))
_ONE_CHUNK_IN = 8
_PLAIN_SUFFIXES = (".txt", ".md")


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
        files = sorted(p for p in path.rglob("*") if p.suffix in (".jsonl", *_PLAIN_SUFFIXES))
        if not files:
            raise CalibrationTextError(f"{path} has no .jsonl, .txt or .md file.")
        for file in files:
            yield from _read(file)
        return
    content = read_text(path, CalibrationTextError)
    if path.suffix != ".jsonl":
        if content.strip():
            yield Document("plain", text=content)
        return
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield _document(line, path, number)


def _document(line: str, path: Path, number: int) -> Document:
    def wrong(what: str) -> CalibrationTextError:
        return CalibrationTextError(f"{path}, line {number}: {what}.")

    try:
        read = json.loads(line)
    except ValueError:
        raise wrong("not valid JSON") from None
    if not isinstance(read, dict):
        raise wrong("not a JSON object")
    kind = read.get("kind", path.stem)
    if not isinstance(kind, str):
        raise wrong("kind is not a string")
    if isinstance(text := read.get("text"), str):
        return Document(kind, text=text)
    if isinstance(prompt := read.get("prompt"), str) and isinstance(completion := read.get("completion"), str):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return Document(kind, messages=turns)
    messages, tools = read.get("messages"), read.get("tools")
    if messages is None:
        raise wrong("has none of text, messages, or prompt and completion")
    if not (isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages)):
        raise wrong("messages is not a list of objects with a role")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise wrong("tools is not a list of objects")
    return Document(kind, messages=messages, tools=tools)


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
