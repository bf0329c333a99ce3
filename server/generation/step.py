"""Conversation and options in, events out: the one place that knows models, prompt, engine and output together.

HTTP process. Every dialect in `api/` calls `Generation.generate` and renders what it yields. Closing the generator, at
whatever step, cancels everything behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from functools import partial

from server.chat.conversation import Conversation, DecisionRequest, GenerationRequest, Prompt
from server.chat.deltas import Decided, Event, ReasoningDelta, Started, TextDelta, TokenArray, ToolCallDelta
from server.chat.description import Description
from server.chat.encoded import EncodedPrompt
from server.chat.formats.format import WireFormat
from server.chat.grammar.constraint import FREE, Constraint
from server.errors import ContextLengthExceeded
from server.generation.answer import answer
from server.generation.blame import blaming
from server.generation.channels import channels_of, wire_format
from server.generation.decided import decided
from server.generation.engaged import Engaged
from server.generation.places import Places
from server.generation.sampling import generate_commands, score_command, thought_of
from server.generation.waiting import ModelWait
from server.metrics import Measured, Metrics
from server.models.catalog import Catalog
from server.models.residency import Residency
from server.models.status import ModelStatus
from server.settings.types import Settings
from server.text.client import TextProcess
from server.text.protocol import Constrain

log = logging.getLogger("configi.generation")

# So long an editor's question waits for a model's files to be read.
_LOOK_S = 5.0


class Generation:
    """The service behind every endpoint (`api.service.Service`)."""

    def __init__(self, settings: Settings, catalog: Catalog, residency: Residency, metrics: Metrics) -> None:
        self.settings = settings
        self._catalog = catalog
        self._residency = residency
        self._metrics = metrics
        self._places = Places(settings.engine)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """The events of one request, in the order of `chat/deltas.py`.

        Raises:
            ConfigiError: before the first event it is the HTTP answer, after it the stream's error event.
        """
        entry, options = self._catalog.resolve(request.model), request.options
        with self._metrics.request(entry.id) as measured, self._places.take(options.n) as place:
            limit_s = None if request.wait_for_model else self.settings.lifecycle.load_wait_s
            wait = ModelWait(self._residency, entry, place, limit_s)
            opening = self._residency.open(entry)
            while pending := await wait.files(opening):
                yield pending
            text = opening.result()
            chosen = wire_format(entry, text.vocabulary)
            prompt, constraint = await self._encoded(request, text, chosen)
            _log_notes(request, request.notes)
            self._log_text(request, "prompt", prompt.text)
            thought = thought_of(chosen.thought, options.reasoning, prompt, constraint)
            commands = generate_commands(options, request.client, text.vocabulary, prompt, constraint, thought)
            engaged = Engaged(
                self._residency,
                entry,
                place,
                wait,
                commands,
                table=text.vocabulary.token_table,
                followed_by=lambda: text.asking,
                keep_alive_s=request.keep_alive_s,
                on_again=partial(_asked_again, request, measured),
            )
            with blaming(request), engaged:
                while pending := await engaged.asked():
                    yield pending
                yield Started(entry.id, len(prompt.ids), prompt.text, prompt.ids, prompt.truncated)
                while pending := await engaged.begun():
                    yield pending
                held = commands[0].grammar is not None
                channels = channels_of(request, chosen, text.vocabulary, prompt, held=held)
                answering = answer(engaged.stream, request, text.vocabulary, prompt, channels, engaged.on_slot)
                async with aclosing(answering) as events:
                    async for event in events:
                        measured.event(event)
                        self._log_answer(request, event)
                        yield event

    async def _encoded(
        self, request: GenerationRequest, text: TextProcess, chosen: WireFormat
    ) -> tuple[EncodedPrompt, Constraint]:
        """The prompt, and beside it what is asked of the answer."""
        constraining = asyncio.ensure_future(self._constraint(request, text, chosen))
        # The prompt's error comes first, and then nobody asks for this one.
        constraining.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            offsets = request.options.prompt_logprobs
            prompt = await text.encode_prompt(request.prompt, request.client.group, with_offsets=offsets)
            return prompt, await constraining
        finally:
            constraining.cancel()

    async def decide(self, request: DecisionRequest) -> Decided:
        """How likely the options of each question are.

        Raises:
            ConfigiError: the HTTP answer.
        """
        entry, client = self._catalog.resolve(request.model), request.client
        with self._metrics.request(entry.id) as measured, self._places.take(1) as place:
            wait = ModelWait(self._residency, entry, place, self.settings.lifecycle.load_wait_s)
            opening = self._residency.open(entry)
            await wait.files(opening)
            text = opening.result()
            inquiry = await text.encode_inquiry(request.inquiry, client.group)
            self._log_text(request, "prompt", inquiry.text)
            engaged = Engaged(
                self._residency,
                entry,
                place,
                wait,
                [score_command(inquiry, client)],
                followed_by=lambda: text.asking,
                keep_alive_s=request.keep_alive_s,
                on_again=partial(_asked_again, request, measured),
            )
            with blaming(request), engaged:
                while await engaged.begun():
                    # It has nobody to tell.
                    pass
                answer = await decided(engaged.stream, entry.id, inquiry, engaged.on_slot)
            measured.event(answer.usage)
            return answer

    async def tokenize(self, model: str | None, prompt: Prompt, add_special: bool, client: str) -> TokenArray:
        """Raises ModelUnavailable without the model's files, ContextLengthExceeded for a huge text."""
        async with self._text(model) as text:
            return await text.tokenize(prompt, add_special, client)

    async def detokenize(self, model: str | None, tokens: list[int], client: str) -> str:
        async with self._text(model) as text:
            if len(tokens) > text.context_length:
                raise ContextLengthExceeded(
                    f"This model's maximum context length is {text.context_length} tokens, these are {len(tokens)}.",
                    param="tokens",
                )
            return await text.decode(tokens, client)

    @asynccontextmanager
    async def _text(self, model: str | None) -> AsyncIterator[TextProcess]:
        """For what does not stream and needs no engine; it takes a place like everything else."""
        entry = self._catalog.resolve(model)
        with self._places.take(1) as place:
            opening = self._residency.open(entry)
            await ModelWait(self._residency, entry, place, self.settings.lifecycle.load_wait_s).news(opening)
            yield opening.result()

    async def _constraint(self, request: GenerationRequest, text: TextProcess, chosen: WireFormat) -> Constraint:
        """What the request asks of its answer. What of that cannot be enforced is said in the log."""
        options = request.options
        tools = request.prompt.tools if isinstance(request.prompt, Conversation) else ()
        bounded = chosen.thought is not None and options.reasoning.budget_tokens is not None
        closing = chosen.thought.closing if chosen.thought and bounded else ""
        if not (tools or options.shape or options.bad_words or closing):
            return FREE
        most = int(self.settings.limits.max_grammar_bytes)
        command = Constrain(chosen.name, tools, options.tool_choice, options.shape, options.bad_words, closing, most)
        constraint = await text.constrain(command, request.client.group)
        _log_notes(request, constraint.notes)
        return constraint

    def _log_answer(self, request: GenerationRequest, event: Event) -> None:
        match event:
            case TextDelta():
                self._log_text(request, f"answer {event.choice}", event.text)
            case ReasoningDelta():
                self._log_text(request, f"reasoning {event.choice}", event.text)
            case ToolCallDelta():
                self._log_text(request, f"call {event.choice}.{event.index}", (event.name or "") + event.arguments)

    def _log_text(self, request: GenerationRequest | DecisionRequest, what: str, text: str) -> None:
        if self.settings.log.prompts:
            log.info(what, extra={"request_id": request.id, "text": text})

    # ---- what operations and model endpoints show

    def models(self) -> list[ModelStatus]:
        return [self._residency.status(entry) for entry in self._catalog.entries]

    def model(self, name: str) -> ModelStatus:
        return self._residency.status(self._catalog.resolve(name))

    def default_model(self) -> ModelStatus:
        return self._residency.status(self._catalog.default)

    async def description(self, name: str) -> Description | None:
        """What the files of the model say, which are read for it if they are on this machine; nothing is fetched. None
        when they are not here, cannot be read, or take longer than an editor waits: the next one that asks is told."""
        return await self._residency.describe(self._catalog.resolve(name), _LOOK_S)

    def healthy(self) -> bool:
        """Alive and making progress: the engine, if there should be one, is there and answers."""
        engines = [model.engine for model in self._residency.models if model.engine is not None]
        stuck = any(engine.silence_s > self.settings.engine.hang_timeout_s for engine in engines)
        return not stuck and not self._residency.engine_gave_up

    def metrics(self) -> bytes:
        return self._metrics.render(self._residency.models)

    # ---- shutdown

    def drain(self) -> None:
        """No new requests; what runs may finish."""
        self._places.drain()

    def end(self) -> None:
        """The grace time is over: whatever still runs gets an error event."""
        self._places.end()


def _asked_again(request: GenerationRequest | DecisionRequest, measured: Measured) -> None:
    log.warning("asked again: the engine ended before it had begun with it", extra={"request_id": request.id})
    measured.asked_again()


def _log_notes(request: GenerationRequest, notes: Iterable[str]) -> None:
    for note in notes:
        log.info(note, extra={"request_id": request.id})
