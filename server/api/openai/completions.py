"""POST /v1/completions: routes, and rendering of events as OpenAI's text completion JSON. HTTP process.

Several prompts run as concurrent generations whose choices are numbered through: prompt * n + choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import msgspec
from fastapi import APIRouter, Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from server.api.asked import generation
from server.api.cache_headers import cache_headers
from server.api.collected import Answer, Choice, collect_all, merged, unfinished
from server.api.default_dialect import OPENAI
from server.api.openai.completions_request import CompletionCall, parse_completion
from server.api.openai.legacy_logprobs import LegacyLogprobs, joined, legacy_logprobs
from server.api.openai.shown import SYSTEM_FINGERPRINT, WireUsage, wire_usage
from server.api.progress import PromptProgress, prompt_text, reading, waiting
from server.api.service import Service
from server.api.stamps import answer_id, wall_time
from server.chat.conversation import GenerationRequest
from server.chat.deltas import (
    Event,
    Finish,
    ModelPending,
    PrefillProgress,
    PromptLogprobs,
    ScoredToken,
    Started,
    TextDelta,
    Usage,
)
from server.http.body import parsed_body
from server.http.disconnect import while_connected
from server.http.sse import comment, frame, stream

DIALECT = OPENAI


class TextChoice(msgspec.Struct, frozen=True):
    """A choice of a whole answer, and of a chunk."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: Sequence[int] | UnsetType = UNSET


class TextCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer, and a chunk of one: this endpoint has one shape for both."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str = SYSTEM_FINGERPRINT
    choices: list[TextChoice]
    usage: WireUsage | UnsetType | None
    prompt_progress: PromptProgress | UnsetType = UNSET


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    parse = partial(parse_completion, limits=service.settings.limits)

    @routes.post("/v1/completions")
    @routes.post("/completions")
    @routes.post("/api/v0/completions")
    async def completions(request: Request) -> Response:
        call = await parsed_body(request, parse)
        first = generation(request, service.settings, call, call.prompts[0])
        return await while_connected(request, _respond(service, call, first))

    return routes


async def _respond(service: Service, call: CompletionCall, first: GenerationRequest) -> Response:
    generations = [service.generate(request) for request in _requests(call, first)]
    if call.stream:
        renderer = CompletionStream(answer_id("cmpl-"), wall_time(), call)
        return await stream(merged(generations), renderer, DIALECT, service.settings.server, call.headers)
    answers = await collect_all(generations, call.options.n)
    body = msgspec.json.encode(_completion(answers, call))
    headers = {**call.headers, **cache_headers([answer.usage for answer in answers])}
    return Response(body, headers=headers, media_type="application/json")


def _requests(call: CompletionCall, first: GenerationRequest) -> list[GenerationRequest]:
    if len(call.prompts) == 1:
        return [first]
    return [replace(first, id=f"{first.id}-{index}", prompt=prompt) for index, prompt in enumerate(call.prompts)]


def _completion(answers: Sequence[Answer], call: CompletionCall) -> TextCompletion:
    choices = [
        _choice(index * call.options.n + k, choice, answer.started, call)
        for index, answer in enumerate(answers)
        for k, choice in enumerate(answer.choices)
    ]
    return TextCompletion(
        id=answer_id("cmpl-"),
        created=wall_time(),
        model=answers[0].started.model,
        choices=choices,
        usage=wire_usage([answer.usage for answer in answers]),
    )


def _choice(index: int, choice: Choice, started: Started, call: CompletionCall) -> TextChoice:
    before = started.prompt_text if call.echo else ""
    logprobs = None
    if call.logprobs:
        logprobs = legacy_logprobs(choice.tokens, len(before))
        if choice.prompt_tokens:
            logprobs = joined(legacy_logprobs(choice.prompt_tokens), logprobs)
    ids, prompt_ids = (choice.ids, started.prompt_ids) if call.token_ids else (UNSET, UNSET)
    return TextChoice(index, before + choice.text, logprobs, choice.reason, ids, prompt_ids)


class CompletionStream:
    """Renders one stream of the events of all prompts."""

    def __init__(self, id: str, created: int, call: CompletionCall) -> None:
        self._id = id
        self._created = created
        self._call = call
        self._model = ""
        self._prompt_texts = [""] * len(call.prompts)
        self._prompt_tokens = [0] * len(call.prompts)
        self._usages: list[Usage] = []
        self._no_usage: UnsetType | None = None if call.include_usage else UNSET

    def render(self, event: tuple[int, Event]) -> bytes:
        prompt, inner = event
        first = prompt * self._call.options.n
        match inner:
            case TextDelta(choice, text, tokens):
                start = len(self._prompt_texts[prompt]) if self._call.echo else 0
                return self._text(first + choice, text, tokens, start) if text or tokens else b""
            case Finish():
                return self._chunk(TextChoice(first + inner.choice, "", None, inner.reason))
            case PromptLogprobs():
                logprobs = legacy_logprobs(inner.tokens)
                return self._chunk(TextChoice(first + inner.choice, self._prompt_texts[prompt], logprobs))
            case Started():
                return self._started(prompt, inner)
            case ModelPending():
                self._model = inner.model
                return self._progress(first, inner.text, waiting(inner, self._prompt_tokens[prompt]))
            case PrefillProgress():
                return self._progress(first, prompt_text(inner), reading(inner))
            case Usage():
                self._usages.append(inner)
        return b""

    def end(self) -> bytes:
        if len(self._usages) != len(self._call.prompts):
            raise unfinished()
        return self._chunk(None, wire_usage(self._usages)) if self._call.include_usage else b""

    def _started(self, prompt: int, event: Started) -> bytes:
        self._model = event.model
        self._prompt_texts[prompt], self._prompt_tokens[prompt] = event.prompt_text, event.prompt_tokens
        # With logprobs the echo comes with them, at PromptLogprobs.
        echo = event.prompt_text if self._call.echo and not self._call.options.prompt_logprobs else ""
        ids = event.prompt_ids if self._call.token_ids else UNSET
        if not echo and ids is UNSET:
            return b""
        first = prompt * self._call.options.n
        choices = (TextChoice(first + k, echo, prompt_token_ids=ids) for k in range(self._call.options.n))
        return b"".join(self._chunk(choice) for choice in choices)

    def _text(self, index: int, text: str, tokens: Sequence[ScoredToken], start: int) -> bytes:
        logprobs = legacy_logprobs(tokens, start) if tokens and self._call.logprobs else None
        ids = [token.id for token in tokens] if self._call.token_ids else UNSET
        return self._chunk(TextChoice(index, text, logprobs, token_ids=ids))

    def _progress(self, index: int, text: str, progress: PromptProgress) -> bytes:
        """As data, at the first choice of its prompt, or as a comment."""
        return self._chunk(TextChoice(index, ""), progress=progress) if self._call.progress else comment(text)

    def _chunk(
        self, choice: TextChoice | None, usage: WireUsage | None = None, progress: PromptProgress | UnsetType = UNSET
    ) -> bytes:
        return frame(
            TextCompletion(
                id=self._id,
                created=self._created,
                model=self._model,
                choices=[choice] if choice else [],
                usage=usage or self._no_usage,
                prompt_progress=progress,
            )
        )
