"""One loaded model and the requests it works on. Runs in the engine process.

A step is three verbs: admit what fits, decode one token for every sequence that answers, prefill one chunk. `scheduler`
decides who starts, `admission` who fits, `token_budget` how large a chunk is, `prefill_queue` whose it is, and
`prefix_cache` what need not be read again.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from server.engine import compat, kv
from server.engine.admission import Admission
from server.engine.batch import Batch
from server.engine.decoder import Newcomer
from server.engine.prefill_queue import PrefillQueue
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.prefixes.prefix_cache import PrefixCache
from server.engine.rehearsal import Together
from server.engine.scheduler import Scheduler
from server.engine.steering.grammar import GrammarPending, Grammars
from server.engine.steering.tokens import GrammarError
from server.engine.token_budget import TokenBudget
from server.engine_client.protocol import (
    Cancel,
    EngineEvent,
    Failed,
    FailureKind,
    Finished,
    Generate,
    Load,
    Prefilled,
    Request,
    ScoreOptions,
    Stats,
    TokenTable,
)

log = logging.getLogger("configi.engine")

# With nothing else to do, a step waits for a grammar no longer than this: commands must be heard.
_GRAMMAR_WAIT_S = 0.02


class Float32Logits:
    """The model with its logits in float32: in bf16 they round to 3 digits, too coarse for logprobs and sampling.

    Lazy like everything in MLX: during prefill nobody asks for the logits and nothing is computed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, tokens: mx.array, cache: list[Any] | None = None) -> mx.array:
        logits: mx.array = self._model(tokens, cache=cache)
        return logits.astype(mx.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class Engine:
    """`disk` may hold prefixes of an earlier process; `admission` knows the memory, `together` what can be batched."""

    def __init__(
        self,
        model: nn.Module,
        vocab_size: int,
        options: Load,
        admission: Admission,
        disk: DiskTier,
        together: Together,
    ) -> None:
        self._model = Float32Logits(model)
        self._vocab_size = vocab_size
        self._admission = admission
        self._scheduler = Scheduler(options.max_concurrent)
        self._budget = TokenBudget(options.decode_stall_target_s, options.prefill_step_tokens)
        self._cache_limit = options.cache_limit
        trimmable = kv.all_trimmable(make_prompt_cache(model))
        self._prefixes = PrefixCache(
            options.cache_limit,
            disk,
            trimmable=trimmable,
            prefill_rate=lambda: self._budget.prefill_tokens_per_s,
        )
        self._prefills = PrefillQueue(
            self._model, admission, self._prefixes, trimmable=trimmable, together=together.prefill
        )
        self._together = together
        self._batch = self._empty_batch()
        self._grammars = Grammars(vocab_size)
        # Prompts that are read, and whose grammar is not compiled yet.
        self._unsteered: list[Newcomer] = []
        self._steps = 0

    @property
    def busy(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def handle(self, command: TokenTable | Generate | ScoreOptions | Cancel) -> list[EngineEvent]:
        if isinstance(command, Cancel):
            if self._scheduler.release(command.id):
                self._remove(command.id)
            return []
        if isinstance(command, TokenTable):
            self._grammars.know(command)
            return []
        if fault := self._invalid_token(command):
            return [Failed(command.id, "invalid", fault)]
        if fault := self._admission.refusal(command):
            return [Failed(command.id, "too_long", fault)]
        if isinstance(command, Generate):
            self._grammars.order(command)
        self._scheduler.add(command)
        return []

    def step(self) -> list[EngineEvent]:
        """Admit, decode, prefill. A failure ends what was running, never the loop."""
        self._steps += 1
        try:
            events = [*self._admit(), *self._decode_and_prefill(), *self._relieve()]
        except Exception as error:
            events = self._fail_running(error)
        for event in events:
            if isinstance(event, Finished | Failed) and event.id is not None:
                self._scheduler.release(event.id)
        if events:
            # Running requests come before prefixes.
            available = self._admission.low_watermark - self._admission.reserved(self._running())
            self._prefixes.limit = max(0, min(self._cache_limit, available))
        return events

    def write_one(self) -> bool:
        """Write one prefix to disk, for when there is nothing else to do; False when all are written."""
        return self._prefixes.write_one()

    def stats(self) -> Stats:
        return Stats(
            steps=self._steps,
            running=len(self._scheduler.running),
            waiting=self._scheduler.waiting,
            kv_bytes=self._batch.nbytes + self._prefills.nbytes + sum(kv.nbytes(new.layers) for new in self._unsteered),
            prefix_bytes=self._prefixes.nbytes,
            active_bytes=mx.get_active_memory(),
            peak_bytes=self._prefills.peak_bytes,
        )

    # ---- the three verbs

    def _admit(self) -> Iterator[EngineEvent]:
        for request in self._scheduler.admit(lambda r: self._admission.fits(r, self._running())):
            self._prefills.add(request)
            yield Prefilled(request.id, 0, len(request.prompt))

    def _decode_and_prefill(self) -> list[EngineEvent]:
        """The token budget gets the time that the model took, without the bookkeeping between."""
        events, decode_s = self._decode()
        decoding = len(self._batch) > 0
        chunk = self._prefills.read(self._budget.chunk_tokens(decoding=decoding))
        read = [(prefill.request, prefill.layers) for prefill in chunk.completed]
        self._unsteered += [Newcomer(request, layers) for request, layers in read if isinstance(request, Generate)]
        self._budget.record(decode_s + chunk.seconds, prefilled=chunk.tokens, decoding=decoding)
        return events + chunk.events + self._begin_answers()

    def _begin_answers(self) -> list[EngineEvent]:
        """Decode what is read, once its grammar is there."""
        if not self._unsteered:
            return []
        if len(self._unsteered) == len(self._scheduler.running):
            self._grammars.wait([newcomer.request for newcomer in self._unsteered], _GRAMMAR_WAIT_S)
        events: list[EngineEvent] = []
        ready, waiting = [], []
        for newcomer in self._unsteered:
            try:
                steering = self._grammars.steering(newcomer.request)
            except GrammarPending:
                waiting.append(newcomer)
            except GrammarError as error:
                events.append(Failed(newcomer.request.id, "invalid", str(error)))
            else:
                ready.append(newcomer._replace(steering=steering))
        self._unsteered = waiting
        return events + self._batch.add(ready)

    def _decode(self) -> tuple[list[EngineEvent], float]:
        """One token for every sequence; the events, and the seconds that the model took."""
        if not len(self._batch):
            return [], 0.0
        start = time.monotonic()
        events, finished = self._batch.step()
        seconds = time.monotonic() - start
        for answered in finished:
            self._keep(*answered)
        return events, seconds

    def _remove(self, id: int) -> None:
        """Take a cancelled request out of whatever phase it is in; what was read stays read."""
        if id in self._prefills:
            self._prefills.cancel(id)
        elif id in self._batch:
            self._keep(*self._batch.remove(id))
        else:
            self._unsteered = [newcomer for newcomer in self._unsteered if newcomer.request.id != id]

    def _keep(self, request: Generate, tokens: list[int], layers: compat.Layers) -> None:
        """What was read and answered, for the next turn."""
        if request.keep_answer:
            self._prefixes.store(tokens, layers, [], "assistant", request.cache_salt)

    def _empty_batch(self) -> Batch:
        return Batch(self._model, self._vocab_size, merged=self._together.decode)

    # ---- memory

    def _running(self) -> list[tuple[Request, int]]:
        """The requests that hold a slot, with the tokens in their caches."""
        unsteered = ((newcomer.request, len(newcomer.request.prompt) - 1) for newcomer in self._unsteered)
        return [*self._prefills.requests(), *unsteered, *self._batch.requests()]

    def _relieve(self) -> list[EngineEvent]:
        """Over the limit, evict prefixes, then end the newest sequence: one error instead of the end of all."""
        if mx.get_active_memory() <= self._admission.limit:
            return []
        self._prefixes.shrink(0)
        mx.clear_cache()
        if mx.get_active_memory() <= self._admission.limit or not self._scheduler.running:
            return []
        newest = max(self._scheduler.running)
        self._prefills.discard(newest)
        self._unsteered = [newcomer for newcomer in self._unsteered if newcomer.request.id != newest]
        if newest in self._batch:
            self._batch.remove(newest)
        return [Failed(newest, "memory", _OUT_OF_MEMORY)]

    # ---- faults

    def _invalid_token(self, request: Request) -> str | None:
        """What is wrong with the request's tokens, if anything: an index outside the vocabulary is undefined in MLX."""
        for field, tokens in _tokens_of(request).items():
            for token in tokens:
                if not 0 <= token < self._vocab_size:
                    return f"{field} names token {token}, but the vocabulary has {self._vocab_size} tokens."
        return None

    def _fail_running(self, error: Exception) -> list[EngineEvent]:
        """Every running request shares the failed batch, so each gets the error; a new batch takes the next ones."""
        kind, message = _explain(error)
        log.error("step failed: %s", message, exc_info=error)
        running = self._scheduler.running
        # The traceback holds the failed batch's caches alive; let go of both before the next step allocates.
        detail = "".join(traceback.format_exception(error))
        error.__traceback__ = None
        self._batch = self._empty_batch()
        self._prefills.clear()
        self._unsteered.clear()
        if kind == "memory":
            self._prefixes.shrink(0)
        mx.clear_cache()
        return [Failed(id, kind, message, detail) for id in sorted(running)]


def _tokens_of(request: Request) -> dict[str, Iterable[int]]:
    """All that it names, by the field."""
    if isinstance(request, ScoreOptions):
        texts = (text for branch in request.branches for text in (branch.tail, *branch.options))
        return {"input": request.prompt, "questions": (token for text in texts for token in text)}
    sampling = request.sampling
    return {
        "prompt": request.prompt,
        "logit_bias": sampling.logit_bias,
        "allowed_token_ids": sampling.allowed or (),
        "bad_words": (token for banned in sampling.banned for token in banned),
        "the thought's closing": request.thought.closing if request.thought else (),
    }


_OUT_OF_MEMORY = "The engine ran out of memory; try a shorter prompt or fewer requests at once."


def _explain(error: Exception) -> tuple[FailureKind, str]:
    if compat.is_out_of_memory(error):
        return "memory", _OUT_OF_MEMORY
    return "internal", "The engine failed on this request; the next one will be served."
