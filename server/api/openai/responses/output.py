"""The events of a generation as output items, and what a stream tells of them. Pure. HTTP process.

An answer is at any time the item that is open, behind those that are finished. Every item tells its own beginning, its
deltas and its end; all are told in order, so that a client that listens to ends only has everything.
"""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from server.api.opaque import enclosed
from server.api.openai.responses.tools import Declared
from server.api.openai.shown import wire_logprob
from server.chat.deltas import Delta, ReasoningDelta, ScoredToken, TextDelta, ToolCallDelta

# An event without its sequence number: "type" and what belongs to it.
Told = dict[str, Any]


class _Item(ABC):
    """One output item while it is made. `place`: what every event of it carries."""

    prefix: str

    def __init__(self, index: int) -> None:
        self.id = f"{self.prefix}_{uuid.uuid4().hex}"
        self.index = index
        self.place = {"item_id": self.id, "output_index": index}

    @abstractmethod
    def item(self, status: str) -> Told:
        """As a stream tells it and an answer holds it."""

    def begin(self) -> Iterator[Told]:
        yield {"type": "response.output_item.added", "output_index": self.index, "item": self.item("in_progress")}

    def end(self, status: str) -> Iterator[Told]:
        yield {"type": "response.output_item.done", "output_index": self.index, "item": self.item(status)}


class _Text(_Item):
    prefix = "msg"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.place["content_index"] = 0
        self._pieces: list[str] = []
        self._logprobs: list[Told] = []

    def item(self, status: str) -> Told:
        content = [] if status == "in_progress" else [self._part()]
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _part(self) -> Told:
        text = "".join(self._pieces)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._logprobs)}

    def begin(self) -> Iterator[Told]:
        yield from super().begin()
        yield {"type": "response.content_part.added", **self.place, "part": self._part()}

    def delta(self, delta: TextDelta) -> Iterator[Told]:
        self._pieces.append(delta.text)
        logprobs = [_logprob(token) for token in delta.tokens]
        self._logprobs += logprobs
        yield {"type": "response.output_text.delta", **self.place, "delta": delta.text, "logprobs": logprobs}

    def end(self, status: str) -> Iterator[Told]:
        part = self._part()
        text = {"text": part["text"], "logprobs": part["logprobs"]}
        yield {"type": "response.output_text.done", **self.place, **text}
        yield {"type": "response.content_part.done", **self.place, "part": part}
        yield from super().end(status)


class _Thought(_Item):
    prefix = "rs"

    def __init__(self, index: int, encrypted: bool) -> None:
        super().__init__(index)
        self.place["content_index"] = 0
        self._encrypted = encrypted
        self._pieces: list[str] = []

    def item(self, status: str) -> Told:
        content = [] if status == "in_progress" else [self._part()]
        item = {"id": self.id, "type": "reasoning", "summary": [], "content": content, "status": status}
        return item | {"encrypted_content": enclosed(self._part()["text"])} if self._encrypted else item

    def _part(self) -> Told:
        return {"type": "reasoning_text", "text": "".join(self._pieces)}

    def begin(self) -> Iterator[Told]:
        yield from super().begin()
        yield {"type": "response.content_part.added", **self.place, "part": self._part()}

    def delta(self, delta: ReasoningDelta) -> Iterator[Told]:
        self._pieces.append(delta.text)
        yield {"type": "response.reasoning_text.delta", **self.place, "delta": delta.text}

    def end(self, status: str) -> Iterator[Told]:
        part = self._part()
        yield {"type": "response.reasoning_text.done", **self.place, "text": part["text"]}
        yield {"type": "response.content_part.done", **self.place, "part": part}
        yield from super().end(status)


class _Summary(_Thought):
    """A thought for a client that asked for summaries: it reads nothing else. All of it stands there."""

    def __init__(self, index: int, encrypted: bool) -> None:
        super().__init__(index, encrypted)
        del self.place["content_index"]
        self.place["summary_index"] = 0

    def item(self, status: str) -> Told:
        item = super().item(status)
        return item | {"summary": item["content"], "content": []}

    def _part(self) -> Told:
        return {"type": "summary_text", "text": "".join(self._pieces)}

    def begin(self) -> Iterator[Told]:
        yield from _Item.begin(self)
        yield {"type": "response.reasoning_summary_part.added", **self.place, "part": self._part()}

    def delta(self, delta: ReasoningDelta) -> Iterator[Told]:
        self._pieces.append(delta.text)
        yield {"type": "response.reasoning_summary_text.delta", **self.place, "delta": delta.text}

    def end(self, status: str) -> Iterator[Told]:
        part = self._part()
        yield {"type": "response.reasoning_summary_text.done", **self.place, "text": part["text"]}
        yield {"type": "response.reasoning_summary_part.done", **self.place, "part": part}
        yield from _Item.end(self, status)


class _Call(_Item):
    prefix = "fc"

    def __init__(self, index: int, call: int, call_id: str, declared: Declared) -> None:
        super().__init__(index)
        self.call = call
        self._call_id = call_id
        self._declared = declared
        self._pieces: list[str] = []

    @property
    def _arguments(self) -> str:
        return "".join(self._pieces)

    def _common(self, kind: str) -> Told:
        item = {"id": self.id, "type": kind, "call_id": self._call_id, "name": self._declared.name}
        return item if self._declared.namespace is None else item | {"namespace": self._declared.namespace}

    def item(self, status: str) -> Told:
        return self._common("function_call") | {"arguments": self._arguments, "status": status}

    def delta(self, delta: ToolCallDelta) -> Iterator[Told]:
        self._pieces.append(delta.arguments)
        if delta.arguments:
            yield {"type": "response.function_call_arguments.delta", **self.place, "delta": delta.arguments}

    def end(self, status: str) -> Iterator[Told]:
        done = {"name": self._declared.name, "arguments": self._arguments}
        yield {"type": "response.function_call_arguments.done", **self.place, **done}
        yield from super().end(status)


class _CustomCall(_Call):
    """The model wrote a JSON object with one string; the client gets the string, when it is whole."""

    prefix = "ctc"

    def item(self, status: str) -> Told:
        return self._common("custom_tool_call") | {"input": self._input(), "status": status}

    def _input(self) -> str:
        try:
            value = json.loads(self._arguments)
            return str(value["input"])
        except (ValueError, KeyError, TypeError):
            return self._arguments

    def delta(self, delta: ToolCallDelta) -> Iterator[Told]:
        self._pieces.append(delta.arguments)
        return iter(())

    def end(self, status: str) -> Iterator[Told]:
        text = self._input()
        yield {"type": "response.custom_tool_call_input.delta", **self.place, "delta": text}
        yield {"type": "response.custom_tool_call_input.done", **self.place, "input": text}
        yield from _Item.end(self, status)


class Output:
    """The items of one answer. `declared`: the client's own names of its tools. `summarized`: thoughts are told as
    summaries."""

    def __init__(self, declared: dict[str, Declared], encrypted: bool, summarized: bool) -> None:
        self.items: list[Told] = []
        self._declared = declared
        self._encrypted = encrypted
        self._thought = _Summary if summarized else _Thought
        self._open: _Text | _Thought | _Call | None = None

    def push(self, delta: Delta) -> Iterator[Told]:
        match delta:
            case TextDelta():
                if not delta.text and not delta.tokens:
                    return
                if not isinstance(self._open, _Text):
                    yield from self._begin(_Text(self._next()))
                assert isinstance(self._open, _Text)
                yield from self._open.delta(delta)
            case ReasoningDelta():
                if not isinstance(self._open, _Thought):
                    yield from self._begin(self._thought(self._next(), self._encrypted))
                assert isinstance(self._open, _Thought)
                yield from self._open.delta(delta)
            case ToolCallDelta():
                if not isinstance(self._open, _Call) or self._open.call != delta.index:
                    yield from self._begin(self._call(delta))
                assert isinstance(self._open, _Call)
                yield from self._open.delta(delta)

    def end(self, status: str) -> Iterator[Told]:
        """The open item's end; what is finished already is complete in any case."""
        if self._open is not None:
            yield from self._open.end(status)
            self.items.append(self._open.item(status))
            self._open = None

    def _begin(self, item: _Text | _Thought | _Call) -> Iterator[Told]:
        yield from self.end("completed")
        self._open = item
        yield from item.begin()

    def _next(self) -> int:
        return len(self.items) + (self._open is not None)

    def _call(self, delta: ToolCallDelta) -> _Call:
        name = delta.name or ""
        declared = self._declared.get(name, Declared(name))
        kind = _CustomCall if declared.custom else _Call
        return kind(self._next(), delta.index, delta.id or f"call_{uuid.uuid4().hex[:24]}", declared)


def _logprob(token: ScoredToken) -> Told:
    return {**_scored(token.text, token.raw, token.logprob), "top_logprobs": _top(token.top)}


def _top(top: Sequence[tuple[int, str, bytes, float]]) -> list[Told]:
    return [_scored(text, raw, logprob) for _, text, raw, logprob in top]


def _scored(text: str, raw: bytes, logprob: float) -> Told:
    return {"token": text, "bytes": list(raw), "logprob": wire_logprob(logprob)}
