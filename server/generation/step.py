"""Conversation and options in, events out: the one place that knows lifecycle, prompt, engine and output together.

HTTP process. Every protocol adapter in `api/` calls `Generation.generate` and renders what it yields. Closing the
generator, at whatever step, cancels everything behind it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from server.chat.conversation import GenerationRequest, Prompt, RawPrompt
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
from server.chat.output import ChoiceOutput, token_text
from server.chat.parts import Role
from server.chat.processor import Processor
from server.chat.prompt import EncodedPrompt, encode_prompt
from server.chat.tokenizer import ChatTokenizer
from server.engine_client.client import EngineStream
from server.engine_client.protocol import Boundary, Finished, Generate, Kind, Prefilled, PromptScored, Sampling, Tokens
from server.errors import InvalidRequest, ModelLoading, QueueFull, QueueTimeout, ShuttingDown
from server.metrics import Metrics
from server.models.catalog import Catalog
from server.models.lifecycle import Lifecycle
from server.models.status import ModelStatus
from server.settings.types import ModelSettings, Settings

# An odd number far from any seed a person types.
_CHOICE_STRIDE = 0xD1342543DE82EF95
log = logging.getLogger("configi.generation")

T = TypeVar("T")

# Results of tools are what the user's side says.
_KINDS: dict[Role, Kind] = {"system": "system", "user": "user", "tool": "user", "assistant": "assistant"}
_COMING_UP = ("fetching", "building", "loading", "unloading")
_SHUTTING_DOWN = "The server is shutting down."


class Generation:
    """The service behind every endpoint (`api.service.Service`)."""

    def __init__(self, settings: Settings, catalog: Catalog, lifecycle: Lifecycle[Processor], metrics: Metrics) -> None:
        self.settings = settings
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._sequences = 0
        self._streams: set[EngineStream] = set()
        self._draining = False
        self._grace_over = asyncio.Event()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """The events of one request, in the order of `chat/events.py`.

        Raises:
            ConfigiError: before the first event it is the HTTP answer, after it the stream's error event.
        """
        entry = self._catalog.resolve(request.model)
        options = request.options
        with self._place(options.n), self._metrics.request(entry.id) as measured:
            opened = asyncio.ensure_future(self._lifecycle.open(entry))
            async with aclosing(self._until(opened, entry, request.wait_for_model)) as waits:
                async for waiting in waits:
                    yield waiting
            processor = opened.result()
            prompt = await self._encode(processor, request.prompt)
            self._log_text(request, "prompt", prompt.text)
            sequences = _sequences(request, processor, prompt)
            lease = self._lifecycle.lease(entry)
            try:
                async with aclosing(self._until(lease.granted, entry, request.wait_for_model)) as waits:
                    async for waiting in waits:
                        yield waiting
                stream = lease.granted.result().generate(sequences)
                async with aclosing(stream), aclosing(self._events(stream, request, processor, prompt)) as events:
                    yield Started(entry.id, len(prompt.ids), prompt.text)
                    async for event in events:
                        measured.event(event)
                        if isinstance(event, TextDelta):
                            self._log_text(request, f"answer {event.choice}", event.text)
                        yield event
            finally:
                lease.release()

    async def tokenize(self, model: str | None, prompt: Prompt, add_special: bool) -> list[int]:
        """Raises ModelUnavailable when the model's files cannot be had, ContextLengthExceeded for a huge text."""
        processor = await self._processor(model)
        if isinstance(prompt, RawPrompt) and isinstance(prompt.content, str):
            # As it is: an empty text has no tokens, and a prompt would have.
            return await asyncio.to_thread(processor.tokenizer.encode, prompt.content, add_special)
        return (await self._encode(processor, prompt)).ids

    async def detokenize(self, model: str | None, tokens: list[int]) -> str:
        processor = await self._processor(model)
        return await asyncio.to_thread(processor.tokenizer.decode, tokens)

    # ---- what operations and model endpoints show

    def models(self) -> list[ModelStatus]:
        return [self._status(entry) for entry in self._catalog.entries]

    def model(self, name: str) -> ModelStatus:
        return self._status(self._catalog.resolve(name))

    def default_model(self) -> ModelStatus:
        return self._status(self._catalog.default)

    def _status(self, entry: ModelSettings) -> ModelStatus:
        """With the context length, which the model's own files tell once they have been read."""
        status = self._lifecycle.status(entry)
        processor = self._lifecycle.opened(entry)
        return replace(status, context_length=processor.context_length) if processor else status

    def healthy(self) -> bool:
        """Alive and making progress: the engine, if there should be one, is there and answers."""
        engine = self._lifecycle.engine
        stuck = engine is not None and engine.silence_s > self.settings.engine.hang_timeout_s
        return not stuck and not self._lifecycle.engine_gave_up

    def metrics(self) -> bytes:
        return self._metrics.render(self.models(), self._lifecycle)

    # ---- shutdown

    def drain(self) -> None:
        """No new requests; what runs may finish."""
        self._draining = True

    def end(self) -> None:
        """The grace time is over: whatever still runs gets an error event."""
        self._grace_over.set()
        for stream in self._streams:
            stream.fail(ShuttingDown(_SHUTTING_DOWN))

    # ---- the steps of `generate`

    def _log_text(self, request: GenerationRequest, what: str, text: str) -> None:
        if self.settings.log.prompts:
            log.info(what, extra={"request_id": request.id, "text": text})

    @contextmanager
    def _place(self, n: int) -> Iterator[None]:
        """A place among the running and waiting sequences, or QueueFull."""
        if self._draining:
            raise ShuttingDown(_SHUTTING_DOWN)
        places = self.settings.engine.max_concurrent + self.settings.engine.queue_limit
        if n > places:
            raise InvalidRequest(f"n is {n}; this server has places for {places} choices at once.", param="n")
        if self._sequences + n > places:
            raise QueueFull(f"The queue is full: {self._sequences} sequences are running or waiting. Try again later.")
        self._sequences += n
        try:
            yield
        finally:
            self._sequences -= n

    async def _until(
        self, future: asyncio.Future[T], entry: ModelSettings, wait_for_model: bool
    ) -> AsyncGenerator[ModelPending, None]:
        """Wait for `future`, telling each change of the model's state meanwhile.

        Raises what the future raises; ModelLoading after `load_wait_s` unless the request is to
        wait for the model.
        """
        loop = asyncio.get_running_loop()
        deadline = None if wait_for_model else loop.time() + self.settings.lifecycle.load_wait_s
        ended = asyncio.ensure_future(self._grace_over.wait())
        try:
            while not future.done():
                changed = asyncio.ensure_future(self._lifecycle.changed())
                status = self._lifecycle.status(entry)
                if wait_for_model and status.state in _COMING_UP:
                    yield ModelPending(f"{status.state}: {status.text}")
                wakers: set[asyncio.Future[Any]] = {future, changed, ended}
                timeout = None if deadline is None else max(0.0, deadline - loop.time())
                await asyncio.wait(wakers, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if ended.done():
                    break
                if deadline is not None and loop.time() >= deadline and not future.done():
                    raise ModelLoading(f"Model '{entry.id}' is not ready yet: {status.state}, {status.text}.")
            # Also when nothing had to be waited for: a stream begun now would have nobody to end it.
            if self._grace_over.is_set():
                raise ShuttingDown(_SHUTTING_DOWN)
            future.result()
        finally:
            ended.cancel()
            # A lease is given back by its holder; a transfer goes on for the next request.
            if isinstance(future, asyncio.Task):
                future.cancel()

    async def _processor(self, model: str | None) -> Processor:
        """For what does not stream and needs no engine."""
        entry = self._catalog.resolve(model)
        opened = asyncio.ensure_future(self._lifecycle.open(entry))
        async for _ in self._until(opened, entry, wait_for_model=False):
            pass
        return opened.result()

    async def _encode(self, processor: Processor, prompt: Prompt) -> EncodedPrompt:
        return await asyncio.to_thread(
            encode_prompt, processor.tokenizer, processor.template, prompt, processor.context_length
        )

    async def _events(
        self, stream: EngineStream, request: GenerationRequest, processor: Processor, prompt: EncodedPrompt
    ) -> AsyncGenerator[Event, None]:
        """The engine's events as text, and at the end the usage of all choices together."""
        options, tokenizer = request.options, processor.tokenizer
        outputs = [
            ChoiceOutput(tokenizer, options.stop, choice, options.top_logprobs is not None)
            for choice in range(options.n)
        ]
        completion_tokens = [0] * options.n
        cached = 0
        timeout_s = self.settings.engine.queue_timeout_s
        error = QueueTimeout(f"The request waited for {timeout_s:g} s without getting a slot.")
        queue_timeout = asyncio.get_running_loop().call_later(timeout_s, stream.fail, error)
        self._streams.add(stream)
        try:
            async for choice, event in stream:
                match event:
                    case Tokens():
                        completion_tokens[choice] += len(event.tokens)
                        deltas, stopped = outputs[choice].push(event.tokens, event.logprobs)
                        for delta in deltas:
                            yield delta
                        if stopped:
                            stream.stop(choice)
                            yield Finish(choice, "stop", completion_tokens[choice])
                    case Finished():
                        for delta in outputs[choice].finish():
                            yield delta
                        yield Finish(choice, event.reason, completion_tokens[choice])
                    case Prefilled():
                        queue_timeout.cancel()
                        cached = max(cached, event.cached)
                        if event.shared:
                            _log_prefix(request.id, event)
                        if choice == 0:
                            yield PrefillProgress(event.done, event.total, event.cached)
                    case PromptScored():
                        yield PromptLogprobs(choice, _prompt_tokens(prompt, event, tokenizer))
        finally:
            queue_timeout.cancel()
            self._streams.discard(stream)
        yield Usage(len(prompt.ids), sum(completion_tokens), cached)


def _sequences(request: GenerationRequest, processor: Processor, prompt: EncodedPrompt) -> list[Generate]:
    """One `Generate` per choice. What the request leaves open is the model's own default, from its files."""
    options = request.options
    tokenizer, defaults = processor.tokenizer, processor.tokenizer.defaults
    for token in options.logit_bias:
        if token >= tokenizer.vocab_size:
            size = tokenizer.vocab_size
            raise InvalidRequest(f"logit_bias: the vocabulary has {size} tokens, {token} is none.", param="logit_bias")
    room = processor.context_length - len(prompt.ids)
    seed = secrets.randbits(64) if options.seed is None else options.seed

    def either(asked: float | None, default: float) -> float:
        return default if asked is None else asked

    return [
        Generate(
            id=0,
            prompt=prompt.ids,
            boundaries=[Boundary(end.offset, _KINDS[end.role]) for end in prompt.boundaries],
            client=request.client,
            max_tokens=room if options.max_tokens is None else min(options.max_tokens, room),
            stop_tokens=sorted(tokenizer.eos_ids),
            top_logprobs=options.top_logprobs,
            prompt_logprobs=options.prompt_logprobs,
            sampling=Sampling(
                # Each choice has its own stream of random numbers; the first is that of n = 1.
                seed=(seed + choice * _CHOICE_STRIDE) % 2**64,
                temperature=either(options.temperature, defaults.temperature),
                top_p=either(options.top_p, defaults.top_p),
                top_k=int(either(options.top_k, defaults.top_k)),
                min_p=either(options.min_p, defaults.min_p),
                repetition_penalty=either(options.repetition_penalty, defaults.repetition_penalty),
                presence_penalty=options.presence_penalty,
                frequency_penalty=options.frequency_penalty,
                logit_bias=options.logit_bias,
            ),
        )
        for choice in range(options.n)
    ]


def _prompt_tokens(prompt: EncodedPrompt, scored: PromptScored, tokenizer: ChatTokenizer) -> tuple[ScoredToken, ...]:
    """The prompt as scored tokens; the first has no logprob, which is NaN here."""
    text, raw = tokenizer.token(prompt.ids[0])
    first = ScoredToken(prompt.ids[0], text, raw, math.nan)
    return (first, *(token_text(tokenizer, logprob) for logprob in scored.logprobs))


def _log_prefix(request_id: str, event: Prefilled) -> None:
    """Where the prompt leaves the most similar earlier one: what to look at when a conversation is read anew."""
    text = f"prompt shares first {event.shared} of {event.total} tokens with an earlier one, reuses {event.cached}"
    log.info(text, extra={"request_id": request_id})
