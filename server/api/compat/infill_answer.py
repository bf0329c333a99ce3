"""POST /infill, outwards: events -> llama-server's answer, whole and as a stream. HTTP process."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from server.api.collected import unfinished
from server.api.progress import PromptProgress, prompt_text, reading, waiting
from server.chat.deltas import Event, Finish, ModelPending, PrefillProgress, Started, TextDelta, Usage
from server.http.sse import comment, frame


class GrowingInfill:
    """One answer as its events come."""

    def __init__(self, response_fields: Sequence[str]) -> None:
        self._fields = response_fields
        self._text: list[str] = []
        self._started: Started | None = None
        self._finish: Finish | None = None
        self._usage: Usage | None = None
        # When it got its slot, when its first text came, and when it ended.
        self._slot_at = self._text_at = self._end_at = 0.0

    @property
    def usage(self) -> Usage:
        """Of the whole answer."""
        if self._usage is None:
            raise unfinished()
        return self._usage

    @property
    def prompt_tokens(self) -> int:
        return self._started.prompt_tokens if self._started else 0

    def take(self, event: Event) -> None:
        now = time.monotonic()
        match event:
            case Started():
                self._started = event
            case PrefillProgress():
                self._slot_at = self._slot_at or now
            case TextDelta():
                self._text_at = self._text_at or now
                self._text.append(event.text)
            case Finish():
                self._finish, self._end_at = event, now
            case Usage():
                self._usage = event

    def whole(self) -> dict[str, Any]:
        """The answer with its text."""
        return self._last("".join(self._text))

    def end(self) -> dict[str, Any]:
        """The last event of a stream, whose text has been sent."""
        return self._last("")

    def _last(self, content: str) -> dict[str, Any]:
        if self._started is None or self._finish is None or self._usage is None:
            raise unfinished()
        answer = {
            "index": 0,
            "content": content,
            "tokens": [],
            "stop": True,
            "model": self._started.model,
            "tokens_predicted": self._usage.completion_tokens,
            "tokens_evaluated": self._usage.prompt_tokens,
            "prompt": self._started.prompt_text,
            "has_new_line": any("\n" in text for text in self._text),
            "truncated": self._started.truncated,
            "stop_type": _stop_type(self._finish),
            "stopping_word": self._finish.stop_string or "",
            "tokens_cached": self._usage.cached_tokens,
            "timings": self._timings(self._usage),
        }
        return _chosen(answer, self._fields) if self._fields else answer

    def _timings(self, usage: Usage) -> dict[str, float]:
        """As far as they are seen from here: the time of the prompt ends with the first text."""
        begun = self._slot_at or self._end_at
        text_at = self._text_at or self._end_at
        read = usage.prompt_tokens - usage.cached_tokens
        return {
            "cache_n": usage.cached_tokens,
            **_speed("prompt", read, text_at - begun),
            **_speed("predicted", usage.completion_tokens, self._end_at - text_at),
        }


class InfillStream:
    """Renders one stream. `progress`: as data, as llama-server does it, and not as comments."""

    def __init__(self, answer: GrowingInfill, *, progress: bool) -> None:
        self._answer = answer
        self._progress = progress

    def render(self, event: Event) -> bytes:
        self._answer.take(event)
        match event:
            case TextDelta(text=text) if text:
                return self._piece(text)
            case ModelPending():
                return self._told(event.text, waiting(event, self._answer.prompt_tokens))
            case PrefillProgress():
                return self._told(prompt_text(event), reading(event))
        return b""

    def _told(self, text: str, progress: PromptProgress) -> bytes:
        return self._piece("", prompt_progress=progress) if self._progress else comment(text)

    def _piece(self, text: str, **more: Any) -> bytes:
        piece = {"index": 0, "content": text, "tokens": [], "stop": False}
        return frame({**piece, "tokens_evaluated": self._answer.prompt_tokens, **more})

    def end(self) -> bytes:
        return frame(self._answer.end())


async def collected(events: AsyncGenerator[Event, None], answer: GrowingInfill) -> dict[str, Any]:
    async with aclosing(events):
        async for event in events:
            answer.take(event)
    return answer.whole()


def _stop_type(finish: Finish) -> str:
    if finish.reason == "length":
        return "limit"
    return "word" if finish.stop_string else "eos"


def _speed(what: str, tokens: int, seconds: float) -> dict[str, float]:
    return {
        f"{what}_n": tokens,
        f"{what}_ms": round(seconds * 1000, 3),
        f"{what}_per_token_ms": round(seconds * 1000 / tokens, 3) if tokens else 0.0,
        f"{what}_per_second": round(tokens / seconds, 3) if seconds else 0.0,
    }


def _chosen(answer: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """What is asked for and there; a part of a part stands under its whole path."""
    chosen = {}
    for path in fields:
        value: Any = answer
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            chosen[path] = value
    return chosen
