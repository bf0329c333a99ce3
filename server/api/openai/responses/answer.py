"""The response object, whole or as it grows, and the renderer of its stream. HTTP process."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from server.api.cache_headers import cache_headers
from server.api.collected import unfinished
from server.api.openai.responses.output import Output, Told
from server.api.openai.responses.request import ResponseCall
from server.api.openai.shown import response_usage
from server.api.progress import PromptProgress, prompt_text, reading, waiting
from server.chat.deltas import (
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
from server.errors import ConfigiError, ResponseCancelled
from server.http.sse import comment

# Called with the body of a response that has ended, when it is to be kept.
Keep = Callable[[dict[str, Any]], None] | None


class GrowingResponse:
    """One response while it is made. `keep` is given its body when it has ended."""

    def __init__(self, call: ResponseCall, keep: Keep) -> None:
        self._call = call
        self._keep = keep
        summarized = call.fields.reasoning.asked_summary is not None
        self._output = Output(call.tools.declared, call.encrypted, summarized)
        self._started = time.time()
        self._model = call.model or ""
        self._reason: str | None = None
        self._usage: Usage | None = None
        self.id = f"resp_{uuid.uuid4().hex}"

    def take(self, event: Event) -> Iterable[Told]:
        """What there is to tell of `event`."""
        match event:
            case TextDelta() | ReasoningDelta() | ToolCallDelta():
                return self._output.push(event)
            case Started() | ModelPending():
                self._model = event.model
            case Finish():
                self._reason = event.reason
                return self._output.end("incomplete" if event.reason == "length" else "completed")
            case Usage():
                self._usage = event
        return ()

    def end(self) -> dict[str, Any]:
        """The body of the finished response. Raises EngineFailed when the answer is not complete."""
        if self._usage is None or self._reason is None:
            raise unfinished()
        cut = {"reason": "max_output_tokens"} if self._reason == "length" else None
        return self._last(self.body("incomplete" if cut else "completed") | {"incomplete_details": cut})

    def cache_headers(self) -> dict[str, str]:
        return cache_headers([self._usage] if self._usage else [])

    def failed(self, error: ConfigiError) -> dict[str, Any]:
        list(self._output.end("incomplete"))
        if isinstance(error, ResponseCancelled):
            return self._last(self.body("cancelled"))
        code = "server_error" if error.status >= 500 else error.code or "invalid_prompt"
        return self._last(self.body("failed") | {"error": {"code": code, "message": error.message}})

    def _last(self, body: dict[str, Any]) -> dict[str, Any]:
        if self._keep is not None:
            self._keep(body)
        return body

    def body(self, status: str) -> dict[str, Any]:
        fields = self._call.fields
        return {
            "id": self.id,
            "object": "response",
            "created_at": int(self._started),
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": fields.instructions,
            "max_output_tokens": fields.max_output_tokens,
            "max_tool_calls": fields.max_tool_calls,
            "metadata": fields.metadata,
            "model": self._model,
            "output": list(self._output.items),
            "parallel_tool_calls": fields.parallel_tool_calls,
            "previous_response_id": fields.previous_response_id,
            "reasoning": {"effort": fields.reasoning.effort, "summary": fields.reasoning.asked_summary},
            "service_tier": "default",
            "store": fields.store,
            "temperature": fields.temperature,
            "text": {"format": fields.text.format or {"type": "text"}},
            "tool_choice": "auto" if fields.tool_choice is None else fields.tool_choice,
            "tools": fields.tools,
            "top_logprobs": fields.top_logprobs or 0,
            "top_p": fields.top_p,
            "truncation": fields.truncation,
            "usage": None if self._usage is None else response_usage(self._usage),
        }


class ResponseStream:
    """Renders one stream. Clients miss an answer whose items have no end, or that is not completed: all are told."""

    def __init__(self, response: GrowingResponse, progress: bool) -> None:
        self._response = response
        self._progress = progress
        self._sequence = 0
        self._created = False
        # Of the prompt, once the engine has it.
        self._prompt_tokens = 0

    def render(self, event: Event) -> bytes:
        match event:
            case Started():
                self._response.take(event)
                self._prompt_tokens = event.prompt_tokens
                return self._opening("in_progress") + self._state("in_progress")
            case ModelPending() if self._progress:
                self._response.take(event)
                # Before the engine has it, what is in progress is the way there.
                state = "in_progress" if self._prompt_tokens else "queued"
                return self._opening(state) + self._state(state, waiting(event, self._prompt_tokens))
            case ModelPending():
                return comment(event.text)
            case PrefillProgress() if self._progress:
                return self._state("in_progress", reading(event))
            case PrefillProgress():
                return comment(prompt_text(event))
        return self._frames(self._response.take(event))

    def end(self) -> bytes:
        body = self._response.end()
        return self._frames([{"type": f"response.{body['status']}", "response": body}])

    def error(self, error: ConfigiError) -> bytes:
        """In place of the dialect's error event: this one tells what there is of the answer."""
        opening = self._opening("in_progress")
        return opening + self._frames([{"type": "response.failed", "response": self._response.failed(error)}])

    def _opening(self, status: str) -> bytes:
        """What SDKs expect before every other event, once."""
        if self._created:
            return b""
        self._created = True
        return self._frames([{"type": "response.created", "response": self._response.body(status)}])

    def _state(self, status: str, progress: PromptProgress | None = None) -> bytes:
        told = {"type": f"response.{status}", "response": self._response.body(status)}
        return self._frames([told if progress is None else told | {"prompt_progress": progress}])

    def _frames(self, told: Iterable[Told]) -> bytes:
        frames = []
        for event in told:
            data = msgspec.json.encode(event | {"sequence_number": self._sequence})
            frames.append(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), data))
            self._sequence += 1
        return b"".join(frames)
