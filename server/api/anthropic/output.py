"""The events of a generation as content blocks, whole or as a stream tells them. HTTP process.

A client that misses the end of a block drops it (Claude Code loses its tool call), so each is begun, told and ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from server.api.anthropic.request import MessagesCall
from server.api.cache_headers import cache_headers
from server.api.collected import unfinished
from server.api.opaque import enclosed
from server.api.progress import PromptProgress, reading, waiting
from server.api.stamps import answer_id
from server.chat.deltas import (
    Delta,
    Event,
    Finish,
    ModelPending,
    PrefillProgress,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)

_Told = dict[str, Any]

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class _Block:
    """A content block while it is made: `begun` as a stream opens it, `whole` as it ends up."""

    def __init__(self, begun: _Told) -> None:
        self.begun = begun
        self.pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def whole(self) -> _Told:
        return self.begun | {"text": self.text}

    def delta(self, text: str) -> _Told | None:
        return {"type": "text_delta", "text": text} if text else None

    def last(self) -> _Told | None:
        return None


class _Thinking(_Block):
    """The signature encloses the thought, so that it comes back also from a client that was not shown it."""

    def __init__(self, shown: bool) -> None:
        super().__init__({"type": "thinking", "thinking": "", "signature": ""})
        self._shown = shown

    def whole(self) -> _Told:
        return self.begun | {"thinking": self.text if self._shown else "", "signature": enclosed(self.text)}

    def delta(self, text: str) -> _Told | None:
        return {"type": "thinking_delta", "thinking": text} if text and self._shown else None

    def last(self) -> _Told | None:
        return {"type": "signature_delta", "signature": enclosed(self.text)}


class _ToolUse(_Block):
    def __init__(self, call: int, id: str, name: str) -> None:
        super().__init__({"type": "tool_use", "id": id, "name": name, "input": {}})
        self.call = call

    def whole(self) -> _Told:
        """Arguments that were cut are no object; Anthropic's own advice is to give them under this name."""
        try:
            value = json.loads(self.text or "{}")
        except ValueError:
            value = {"INVALID_JSON": self.text}
        return self.begun | {"input": value}

    def delta(self, text: str) -> _Told | None:
        return {"type": "input_json_delta", "partial_json": text} if text else None


class GrowingMessage:
    """One message while it is made."""

    def __init__(self, call: MessagesCall) -> None:
        self.content: list[_Told] = []
        self._call = call
        self._open: _Block | None = None
        self._id = answer_id("msg_")
        self._model = call.model or ""
        self._finish: Finish | None = None
        self._usage: Usage | None = None
        self._prompt_tokens = 0

    def take(self, event: Event) -> Iterable[_Told]:
        """What there is to tell of `event`."""
        match event:
            case TextDelta() | ReasoningDelta() | ToolCallDelta():
                return self._push(event)
            case Started():
                self._model, self._prompt_tokens = event.model, event.prompt_tokens
            case Finish():
                self._finish = event
                return self._end_block()
            case Usage():
                self._usage = event
        return ()

    def cache_headers(self) -> dict[str, str]:
        return cache_headers([self._usage] if self._usage else [])

    def message(self) -> _Told:
        """As it is now; when it has ended, whole."""
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": list(self.content),
            **self._stop(),
            "usage": self._wire_usage(),
        }

    def end(self) -> Iterator[_Told]:
        """Raises EngineFailed when the answer is not complete."""
        if self._usage is None or self._finish is None:
            raise unfinished()
        yield {"type": "message_delta", "delta": self._stop(), "usage": self._wire_usage()}
        yield {"type": "message_stop"}

    def _stop(self) -> _Told:
        if self._finish is None:
            return {"stop_reason": None, "stop_sequence": None}
        # Who has called waits for the results, whatever was said behind the call.
        if self._finish.stop_string is not None and self._finish.reason == "stop":
            return {"stop_reason": "stop_sequence", "stop_sequence": self._finish.stop_string}
        return {"stop_reason": _REASONS[self._finish.reason], "stop_sequence": None}

    def _wire_usage(self) -> _Told:
        """Anthropic counts what came from the cache beside the input, not in it."""
        usage = self._usage or Usage(self._prompt_tokens, 0, 0)
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        }

    def _push(self, delta: Delta) -> Iterator[_Told]:
        text = delta.arguments if isinstance(delta, ToolCallDelta) else delta.text
        if not text and not isinstance(delta, ToolCallDelta):
            return
        if not self._continues(delta):
            yield from self._end_block()
            self._open = self._block(delta)
            yield {"type": "content_block_start", "index": len(self.content), "content_block": self._open.begun}
        assert self._open is not None
        self._open.pieces.append(text)
        yield from self._told(self._open.delta(text))

    def _continues(self, delta: Delta) -> bool:
        match delta:
            case ToolCallDelta():
                return isinstance(self._open, _ToolUse) and self._open.call == delta.index
            case ReasoningDelta():
                return isinstance(self._open, _Thinking)
        return type(self._open) is _Block

    def _block(self, delta: Delta) -> _Block:
        match delta:
            case ToolCallDelta():
                return _ToolUse(delta.index, delta.id or answer_id("toolu_"), delta.name or "")
            case ReasoningDelta():
                return _Thinking(self._call.shows_thinking)
        return _Block({"type": "text", "text": ""})

    def _end_block(self) -> Iterator[_Told]:
        if self._open is not None:
            yield from self._told(self._open.last())
            yield {"type": "content_block_stop", "index": len(self.content)}
            self.content.append(self._open.whole())
            self._open = None

    def _told(self, delta: _Told | None) -> Iterator[_Told]:
        if delta is not None:
            yield {"type": "content_block_delta", "index": len(self.content), "delta": delta}


class MessageStream:
    """Renders one stream. Pings stand for what has no event of its own: SDKs skip them, connections live by them."""

    def __init__(self, call: MessagesCall) -> None:
        self._message = GrowingMessage(call)
        self._progress = call.progress
        self._prompt_tokens = 0

    def render(self, event: Event) -> bytes:
        match event:
            case ModelPending():
                return self._ping(waiting(event, self._prompt_tokens))
            case PrefillProgress():
                return self._ping(reading(event))
            case Started():
                self._prompt_tokens = event.prompt_tokens
                self._message.take(event)
                return _frames([{"type": "message_start", "message": self._message.message()}])
        return _frames(self._message.take(event))

    def end(self) -> bytes:
        return _frames(self._message.end())

    def _ping(self, progress: PromptProgress) -> bytes:
        return _frames([{"type": "ping", "prompt_progress": progress} if self._progress else {"type": "ping"}])


def _frames(told: Iterable[_Told]) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event)) for event in told)
