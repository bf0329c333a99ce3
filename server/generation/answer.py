"""What the engine sends for one request, as the events of its answer. HTTP process."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Literal

from server.chat.channels import Channels
from server.chat.conversation import GenerationOptions, GenerationRequest
from server.chat.deltas import (
    CacheDivergence,
    Delta,
    Event,
    Finish,
    FinishReason,
    PrefillProgress,
    PromptLogprobs,
    ScoredToken,
    TextDelta,
    Usage,
)
from server.chat.encoded import EncodedPrompt
from server.chat.output import ChoiceOutput, token_text
from server.chat.tokenizers.vocabulary import Vocabulary
from server.engine_client.client import EngineStream
from server.engine_client.protocol import Finished, PeakMemory, Prefilled, PromptScored, Tokens

log = logging.getLogger("configi.generation")


async def answer(
    stream: EngineStream,
    request: GenerationRequest,
    vocabulary: Vocabulary,
    prompt: EncodedPrompt,
    new_channels: Callable[[], Channels | None],
    on_slot: Callable[[], None],
) -> AsyncGenerator[Event, None]:
    """The events of every choice as they come, then the usage of all together. `new_channels`: the parser of one
    choice. `on_slot`: the request has a slot."""
    options = request.options
    outputs = [_output(options, vocabulary, prompt, choice, new_channels()) for choice in range(options.n)]
    begun = [0.0] * options.n
    completion_tokens = [0] * options.n
    prefill = _Prefill(prompt)
    async for choice, event in stream:
        match event:
            case Tokens() | Finished() if options.max_tokens == 0:
                if isinstance(event, Finished):
                    yield Finish(choice, "length", 0)
            case Tokens():
                begun[choice] = begun[choice] or time.monotonic()
                completion_tokens[choice] += len(event.tokens)
                deltas, stopped = outputs[choice].push(event.tokens, event.logprobs)
                for delta in deltas:
                    yield delta
                if stopped:
                    stream.stop(choice)
                    output = outputs[choice]
                    yield Finish(choice, _reason("stop", output), completion_tokens[choice], output.stop_string)
                elif _line_ends_late(deltas, begun[choice], options.time_limit_s):
                    stream.stop(choice)
                    for delta in outputs[choice].finish(cut=True):
                        yield delta
                    yield Finish(choice, "length", completion_tokens[choice])
            case Finished():
                for delta in outputs[choice].finish(cut=event.reason == "length"):
                    yield delta
                yield Finish(choice, _reason(event.reason, outputs[choice]), completion_tokens[choice])
            case Prefilled():
                on_slot()
                _log_reading(request.id, event)
                # The others find what the first has read.
                if choice == 0:
                    yield prefill.progress(event)
            case PromptScored():
                yield PromptLogprobs(choice, _prompt_tokens(prompt, event, vocabulary))
    reasoning_tokens = sum(output.reasoning_tokens for output in outputs)
    yield Usage(len(prompt.ids), sum(completion_tokens), prefill.cached, reasoning_tokens, prefill.divergence)


class _Prefill:
    """How the prompt of one request is read, from its slot on. Only one event of the engine says what was there before:
    it holds for all that follow."""

    def __init__(self, prompt: EncodedPrompt) -> None:
        self.cached = 0
        self.divergence: CacheDivergence | None = None
        self._prompt = prompt
        self._began: float | None = None

    def progress(self, event: Prefilled) -> PrefillProgress:
        now = asyncio.get_running_loop().time()
        self._began = now if self._began is None else self._began
        self.cached = max(self.cached, event.cached)
        # The last token of a prompt is not looked up: it is always read.
        if 0 < event.shared < event.total - 1:
            self.divergence = CacheDivergence(event.shared, _part(self._prompt, event.shared))
        at = None if self.divergence is None else self.divergence.at
        return PrefillProgress(event.done, event.total, self.cached, now - self._began, at)


def _part(prompt: EncodedPrompt, offset: int) -> Literal["system", "messages"] | None:
    ends = [end.offset for end in prompt.boundaries if end.role == "system"][:1]
    return None if not ends else "system" if offset < ends[0] else "messages"


def _output(
    options: GenerationOptions, vocabulary: Vocabulary, prompt: EncodedPrompt, choice: int, channels: Channels | None
) -> ChoiceOutput:
    return ChoiceOutput(
        vocabulary,
        options.stop,
        choice,
        options.top_logprobs is not None,
        channels,
        prompt=prompt.ids,
        parallel=options.tool_choice.parallel,
        min_indent=options.min_indent,
    )


def _reason(reason: Literal["stop", "length"], output: ChoiceOutput) -> FinishReason:
    """A model that has called stops for the results."""
    if output.outdented:
        return "length"
    return "tool_calls" if reason == "stop" and output.called else reason


def _line_ends_late(deltas: Sequence[Delta], begun: float, limit_s: float) -> bool:
    """Whether a line has ended, and the time for the answer is over."""
    if not limit_s or time.monotonic() - begun < limit_s:
        return False
    return any(isinstance(delta, TextDelta) and "\n" in delta.text for delta in deltas)


def _prompt_tokens(prompt: EncodedPrompt, scored: PromptScored, vocabulary: Vocabulary) -> tuple[ScoredToken, ...]:
    """The prompt as scored tokens; the first has no logprob, which is NaN here."""
    text, raw = vocabulary.token(prompt.ids[0])
    first = ScoredToken(prompt.ids[0], text, raw, math.nan)
    tokens = (first, *(token_text(vocabulary, logprob) for logprob in scored.logprobs))
    offsets = prompt.offsets or [0] * len(tokens)
    return tuple(_placed(token, prompt.text, at) for token, at in zip(tokens, offsets, strict=True))


def _placed(token: ScoredToken, text: str, at: int) -> ScoredToken:
    """`token` where it begins in the prompt, without the space that only its spelling has there."""
    shorter = token.text.removeprefix(" ")
    only_spelled = not text.startswith(token.text, at) and text.startswith(shorter, at)
    return replace(token, text=shorter if only_spelled else token.text, offset=at)


def _log_reading(request_id: str, event: Prefilled) -> None:
    if event.shared:
        _log_prefix(request_id, event)
    if event.peak is not None:
        _log_memory(request_id, event.total, event.peak)


def _log_memory(request_id: str, tokens: int, peak: PeakMemory) -> None:
    """Both figures, so that a limit that is met can be told from arithmetic that is wrong."""
    megabytes = {"peak_predicted_mb": peak.predicted // 10**6, "peak_measured_mb": peak.measured // 10**6}
    log.info(f"prompt of {tokens} tokens is read", extra={"request_id": request_id, **megabytes})


def _log_prefix(request_id: str, event: Prefilled) -> None:
    """Where the prompt leaves the most similar earlier one: what to look at when a conversation is read anew."""
    text = f"prompt shares first {event.shared} of {event.total} tokens with an earlier one, reuses {event.cached}"
    log.info(text, extra={"request_id": request_id})
