"""One loaded model and the requests it works on. Runs in the engine process.

A turn decodes one token for every sequence that answers and reads one slice of one prompt. Who starts is `scheduler`'s
matter, who fits `admission`'s, how large a slice is `pace`'s, what need not be read again `prefix_cache`'s.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from server.engine import kv
from server.engine.admission import Admission
from server.engine.batch import Batch
from server.engine.disk_tier import DiskTier
from server.engine.prefill import Prefill, read_together
from server.engine.prefix_cache import Hit, PrefixCache
from server.engine.scheduler import Rotation, Scheduler
from server.engine.scoring import Scoring
from server.engine.token_budget import SMALLEST_SLICE, TokenBudget
from server.engine_client.protocol import (
    Cancel,
    EngineEvent,
    Failed,
    FailureKind,
    Finished,
    Generate,
    Load,
    Prefilled,
    Stats,
)

log = logging.getLogger("configi.engine")

# Where layers are fixed, each checkpoint holds all their state: the system prompt's end and the latest are kept.
_LATEST_CHECKPOINTS = 2


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
    """`disk` may hold prefixes of an earlier process; `admission` knows the memory."""

    def __init__(self, model: nn.Module, vocab_size: int, options: Load, admission: Admission, disk: DiskTier) -> None:
        self._model = Float32Logits(model)
        self._vocab_size = vocab_size
        self._admission = admission
        self._scheduler = Scheduler(options.max_concurrent)
        self._pace = TokenBudget(options.decode_stall_target_s, options.prefill_step_tokens)
        self._rotation = Rotation()
        self._growing = kv.all_growing(make_prompt_cache(model))
        self._cache_limit = options.cache_limit
        self._prefixes = PrefixCache(
            options.cache_limit,
            disk,
            growing=self._growing,
            prefill_rate=lambda: self._pace.prefill_tokens_per_s,
        )
        self._batch = Batch(self._model)
        self._prefills: dict[int, Prefill] = {}
        self._steps = 0
        self._peak_bytes = 0
        # Bytes per token of a slice; more with a longer context, where attention keeps its scores.
        self._activation = admission.footprint.activation

    @property
    def busy(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def handle(self, command: Generate | Cancel) -> list[EngineEvent]:
        if isinstance(command, Cancel):
            if self._scheduler.release(command.id):
                self._remove(command.id)
            return []
        if fault := self._fault(command):
            return [Failed(command.id, "invalid", fault)]
        if fault := self._admission.fault(command):
            return [Failed(command.id, "too_long", fault)]
        self._scheduler.add(command)
        return []

    def step(self) -> list[EngineEvent]:
        """Start what fits and do one turn. A failure ends what ran, never the loop."""
        self._steps += 1
        try:
            events = [*self._admit(), *self._turn(), *self._relieve()]
        except Exception as error:
            events = self._fail_running(error)
        for event in events:
            if isinstance(event, Finished | Failed) and event.id is not None:
                self._scheduler.release(event.id)
        if events:
            # Prefixes are a luxury: they make way for what runs.
            room = self._admission.soft - self._admission.reserved(self._running())
            self._prefixes.limit = max(0, min(self._cache_limit, room))
        return events

    def write_one(self) -> bool:
        """Something for the disk while nothing else is to be done; False when all is written."""
        return self._prefixes.write_one()

    def stats(self) -> Stats:
        prefilling = sum(kv.nbytes(prefill.layers) for prefill in self._prefills.values())
        self._peak_bytes = max(self._peak_bytes, mx.get_peak_memory())
        return Stats(
            steps=self._steps,
            running=len(self._scheduler.running),
            waiting=self._scheduler.waiting,
            kv_bytes=self._batch.nbytes + prefilling,
            prefix_bytes=self._prefixes.nbytes,
            active_bytes=mx.get_active_memory(),
            peak_bytes=self._peak_bytes,
        )

    # ---- a turn

    def _admit(self) -> Iterator[EngineEvent]:
        for request in self._scheduler.admit(lambda r: self._admission.fits(r, self._running())):
            same = next((p.id for p in self._prefills.values() if p.request.prompt == request.prompt), None)
            reader = Scoring if request.prompt_logprobs else Prefill
            self._prefills[request.id] = reader(self._model, request, after=same)
            yield Prefilled(request.id, 0, len(request.prompt))

    def _turn(self) -> list[EngineEvent]:
        """One decode step, one slice. The pace is told what the model took, not what the bookkeeping between did."""
        start = time.monotonic()
        decoding = len(self._batch) > 0
        events, finished = self._batch.step() if decoding else ([], {})
        seconds = time.monotonic() - start
        for tokens, layers in finished.values():
            self._prefixes.store(tokens, layers, [], "assistant")
        decoding = len(self._batch) > 0
        prefilled = 0
        if self._prefills and (size := self._pace.slice_tokens(decoding=decoding)):
            parts = self._slice(size, events)
            start = time.monotonic()
            prefilled = self._read(parts)
            seconds += time.monotonic() - start
            events += self._after_slice(parts)
        self._pace.turn(seconds, prefilled=prefilled, decoding=decoding)
        return events

    def _slice(self, size: int, events: list[EngineEvent]) -> list[tuple[Prefill, int]]:
        """Whose tokens are read next, and how many: one prompt's, or those of several that fit into `size` together."""
        size = min(size, self._admission.slice_tokens(mx.get_active_memory(), self._activation))
        chosen = self._rotation.next(list(self._prefills.values()))
        parts = [(chosen, self._ahead(chosen, size, events))]
        for other in self._prefills.values():
            if not chosen.sociable or other is chosen or not other.sociable or other.after in self._prefills:
                continue
            # Each is padded to the longest, and padding must not cost more than reading the weights again would.
            longest = max(tokens for _, tokens in parts)
            if longest * (len(parts) + 1) > size:
                break
            tokens = self._ahead(other, size, events)
            if longest and longest / 2 <= tokens <= longest * 2 and max(longest, tokens) * (len(parts) + 1) <= size:
                parts.append((other, tokens))
        return parts

    def _ahead(self, prefill: Prefill, size: int, events: list[EngineEvent]) -> int:
        """Tokens to the end of the slice, of the prompt, or to where a checkpoint must be taken."""
        if not prefill.begun:
            events.append(self._begin(prefill))
        # Layers that cannot go back must be kept as they stand at a checkpoint.
        stops = [] if self._growing else self._checkpoints(prefill.request)
        return min(size, prefill.largest, prefill.up_to(stops))

    def _begin(self, prefill: Prefill) -> EngineEvent:
        """Find what was read before."""
        request = prefill.request
        # A KV cache holds no logits, so a prompt that is scored is read from the start.
        hit = Hit(None, 0, 0) if isinstance(prefill, Scoring) else self._prefixes.find(request.prompt)
        prefill.go_on_from(hit.layers, hit.length)
        return Prefilled(request.id, hit.length, len(request.prompt), hit.length, hit.shared)

    def _read(self, parts: Sequence[tuple[Prefill, int]]) -> int:
        """How many tokens the slice had."""
        parts = [(prefill, tokens) for prefill, tokens in parts if tokens]
        count = sum(tokens for _, tokens in parts)
        if parts:
            self._peak_bytes = max(self._peak_bytes, mx.get_peak_memory())
            mx.reset_peak_memory()
            active = mx.get_active_memory()
            read_together(self._model, parts)
            self._activation = max(self._activation, (mx.get_peak_memory() - active) // max(count, SMALLEST_SLICE))
        return count

    def _after_slice(self, parts: Sequence[tuple[Prefill, int]]) -> list[EngineEvent]:
        events: list[EngineEvent] = []
        for prefill, tokens in parts:
            request = prefill.request
            if tokens:
                self._rotation.read(request.client, tokens)
                events.append(Prefilled(request.id, prefill.done, len(request.prompt)))
            if tokens and not self._growing and prefill.done in self._checkpoints(request):
                self._keep(prefill, prefill.done)
        ready = [prefill for prefill, _ in parts if not prefill.remaining]
        for prefill in ready:
            if self._growing:
                self._keep(prefill, self._checkpoints(prefill.request)[-1])
            del self._prefills[prefill.id]
            events += prefill.result()
        self._batch.join([(prefill.request, prefill.layers) for prefill in ready])
        return events

    def _checkpoints(self, request: Generate) -> list[int]:
        """What is worth keeping of the prompt ends here, ascending. What opens the reply is kept with the reply."""
        ends = request.boundaries
        system = [b.offset for b in ends if b.kind == "system"][-1:]
        return sorted({*system, *(b.offset for b in ends[-_LATEST_CHECKPOINTS:])}) or [len(request.prompt) - 1]

    def _keep(self, prefill: Prefill, end: int) -> None:
        request = prefill.request
        ended = [b.kind for b in request.boundaries if b.offset == end]
        kind = ended[0] if ended else "user"
        self._prefixes.store(request.prompt[:end], prefill.layers, request.boundaries, kind)

    def _remove(self, id: int) -> None:
        """Take a cancelled request out of whatever phase it is in; what was read stays read."""
        if id in self._prefills:
            prefill = self._prefills.pop(id)
            if prefill.begun and prefill.done:
                self._keep(prefill, prefill.done)
        elif id in self._batch:
            tokens, layers = self._batch.leave(id)
            self._prefixes.store(tokens, layers, [], "assistant")

    # ---- memory

    def _running(self) -> list[tuple[Generate, int]]:
        """The requests that hold a slot, with the tokens in their caches."""
        prefilling = [(prefill.request, prefill.done) for prefill in self._prefills.values()]
        return prefilling + list(self._batch.requests())

    def _relieve(self) -> list[EngineEvent]:
        """Over the hard mark prefixes go, then the newest sequence: one error instead of the end of all."""
        if mx.get_active_memory() <= self._admission.limit:
            return []
        self._prefixes.shrink(0)
        mx.clear_cache()
        if mx.get_active_memory() <= self._admission.limit or not self._scheduler.running:
            return []
        newest = max(self._scheduler.running)
        self._prefills.pop(newest, None)
        if newest in self._batch:
            self._batch.leave(newest)
        return [Failed(newest, "memory", _OUT_OF_MEMORY)]

    # ---- faults

    def _fault(self, request: Generate) -> str | None:
        """What is wrong with `request`, if anything: an index outside the vocabulary is undefined in MLX."""
        ids = {"prompt": request.prompt, "logit_bias": request.sampling.logit_bias}
        for field, tokens in ids.items():
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
        self._batch = Batch(self._model)
        self._prefills.clear()
        if kind == "memory":
            self._prefixes.shrink(0)
        mx.clear_cache()
        return [Failed(id, kind, message, detail) for id in sorted(running)]


_OUT_OF_MEMORY = "The engine ran out of memory; try a shorter prompt or fewer requests at once."


def _explain(error: Exception) -> tuple[FailureKind, str]:
    if isinstance(error, MemoryError) or any(w in str(error) for w in ("[malloc]", "allocate", "out of memory")):
        return "memory", _OUT_OF_MEMORY
    return "internal", "The engine failed on this request; the next one will be served."
