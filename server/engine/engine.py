"""One loaded model and the requests it works on. Runs in the engine process.

A step admits what fits and then does one thing: it decodes one token for every sequence that answers, or prefills one
chunk, or keeps answers that have ended. What it says leaves before the next step: so no token waits for a chunk, and
none for what is kept. `scheduler` decides who starts, `admission` who fits, `token_budget` whether a chunk is next and
how large, `prefill_queue` whose it is, `prefix_cache` what need not be read again, and `faults` whom a failure ends.
"""

from __future__ import annotations

import logging
import time
from functools import partial

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from server.allocator import give_back
from server.engine import kv
from server.engine.admission import Admission
from server.engine.apportioning import Apportioning
from server.engine.batch import Answered, Batch, unanswered
from server.engine.decoder import Newcomer
from server.engine.device.device import Device
from server.engine.device.failures import OUT_OF_MEMORY
from server.engine.device.pressure import Pressure
from server.engine.faults import Faults
from server.engine.float32_logits import Float32Logits
from server.engine.keeping import Keeping, left_by
from server.engine.prefill_queue import PrefillQueue
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.prefixes.prefix_cache import PrefixCache
from server.engine.rehearsal import Together
from server.engine.scheduler import Scheduler
from server.engine.steering.grammar import Grammars
from server.engine.token_budget import TokenBudget
from server.engine.unsteered import Unsteered
from server.engine.vocabulary import invalid_token
from server.engine_client.protocol import (
    Cancel,
    EngineEvent,
    Failed,
    Finished,
    Generate,
    Load,
    Prefilled,
    ScoreOptions,
    Stats,
    TokenTable,
)

log = logging.getLogger("configi.engine")


class Engine:
    """`disk` may hold prefixes of an earlier process; `admission` knows the memory, `together` what can be batched.

    `lost`: the device has failed, and this is the last event. Nothing may be asked of the engine any more, and nothing
    that it holds be kept.
    """

    def __init__(
        self,
        model: nn.Module,
        vocab_size: int,
        options: Load,
        admission: Admission,
        disk: DiskTier,
        together: Together,
        device: Device | None = None,
    ) -> None:
        self._device = device or Device()
        self._model = Float32Logits(model)
        self._vocab_size = vocab_size
        self._admission = admission
        self._scheduler = Scheduler(options.max_concurrent)
        self._budget = TokenBudget(options.decode_stall_target_s, options.prefill_step_tokens)
        self._trimmable = kv.all_trimmable(make_prompt_cache(model))
        self._prefixes = PrefixCache(
            options.cache_limit,
            disk,
            trimmable=self._trimmable,
            prefill_rate=lambda: self._budget.prefill_tokens_per_s,
            settle=self._device.wait,
        )
        self._prefills = PrefillQueue(
            self._model, admission, self._budget, self._prefixes, trimmable=self._trimmable, together=together.prefill
        )
        self._faults = Faults(self._device, self._prefixes, self._homeless)
        self._batch = Batch(self._model, vocab_size, merged=together.decode)
        self._grammars = Grammars(vocab_size)
        self._unsteered = Unsteered(self._grammars)
        self._memory = Apportioning(
            admission, self._device, self._prefixes, options.cache_limit, (self._prefills, self._unsteered, self._batch)
        )
        self._keeping = Keeping(self._prefixes, self._batch, self._trimmable, self._memory.bound_prefixes)
        # What they leave is to be kept: those of whose end nobody was told, and those that an error has ended.
        self._answered: list[Answered] = self._memory.answered
        # For a chunk in this step; 0 when it is not for prefill.
        self._chunk_s = 0.0
        # When tokens were drawn last.
        self._drawn_at = 0.0

    @property
    def lost(self) -> Failed | None:
        return self._faults.lost

    @property
    def busy(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting or self._answered)

    def handle(self, command: TokenTable | Generate | ScoreOptions | Cancel) -> list[EngineEvent]:
        if isinstance(command, Cancel):
            events: list[EngineEvent] = []
            if self._scheduler.release(command.id):
                drop = self._batch.drop_failed if command.id in self._batch else _nothing
                self._faults.attempt(partial(self._remove, command.id), events, drop)
                self._release(events)
            return events
        if isinstance(command, TokenTable):
            self._grammars.know(command)
            return []
        if fault := invalid_token(command, self._vocab_size):
            return [Failed(command.id, "invalid", fault)]
        if fault := self._admission.refusal(command):
            return [Failed(command.id, "too_long", fault)]
        if isinstance(command, Generate):
            self._grammars.order(command)
        self._scheduler.add(command)
        return []

    def step(self) -> list[EngineEvent]:
        """Admit; then keep, prefill or decode. What fails ends the requests that it was done for and no others, and
        takes no event of this step along; only a device that is `lost` ends all."""
        events: list[EngineEvent] = []
        if not self._answered:
            # Who comes finds what they leave, and their memory.
            self._faults.attempt(self._admit, events)
        self._faults.attempt(self._plan, events, self._drop_failed_prompts)
        if self._answered:
            self._faults.attempt(self._keep_answers, events)
        elif self._chunk_s and not self._batch.under_way:
            self._faults.attempt(self._prefill, events, self._drop_failed_prompts)
        else:
            self._faults.attempt(self._decode, events, self._batch.drop_failed)
        self._faults.attempt(self._begin_answers, events, self._batch.drop_failed)
        self._faults.attempt(self._relieve, events)
        if self.lost:
            # Their tokens have left.
            events += self._ends()
        self._release(events)
        if events and not self.lost:
            self._memory.bound_prefixes()
        return events

    def give_back(self) -> None:
        """What was freed and is kept for reuse, for when nobody uses it soon: that of streams that have grown long is
        many times what they hold. Milliseconds."""
        self._faults.attempt(lambda _: self._device.let_go(), [])
        give_back()

    def write_one(self) -> bool:
        """Write one prefix to disk, for when there is nothing else to do; False when all are written.

        First waits for the device: what one returned that has failed since may be wrong, and is not written.
        """
        self._faults.attempt(lambda _: self._device.wait(), [])
        return self.lost is None and self._prefixes.disk.write_one()

    def close(self, seconds: float) -> None:
        """Write the prefixes that are worth it, for so long at most; nothing of a device that has failed. What runs is
        cancelled."""
        for id in self._scheduler.running:
            self.handle(Cancel(id))
        self._faults.attempt(self._keep_answers, [])
        self._faults.attempt(lambda _: self._device.wait(), [])
        if self.lost is None:
            self._prefixes.disk.close(seconds)

    def yield_to(self, pressure: Pressure) -> None:
        """The machine is as short of memory as that."""
        if self._memory.yield_to(pressure):
            self.give_back()

    def stats(self) -> Stats:
        return Stats(
            running=len(self._scheduler.running),
            waiting=self._scheduler.waiting,
            kv_bytes=self._memory.kv_bytes,
            prefix_bytes=self._prefixes.nbytes,
            active_bytes=mx.get_active_memory(),
            peak_bytes=self._prefills.peak_bytes,
        )

    # ---- what a step does

    def _admit(self, events: list[EngineEvent]) -> None:
        for request in self._scheduler.admit(self._memory.fits):
            self._prefills.add(request)
            events.append(Prefilled(request.id, 0, len(request.prompt)))
            # What it finds is copied into memory that prefixes may still hold.
            self._memory.bound_prefixes()

    def _plan(self, events: list[EngineEvent]) -> None:
        """Whether a chunk is next, which begins when the device is done with what it decodes."""
        decoding = len(self._batch) > 0
        self._chunk_s = 0.0
        if self._prefills.look(wait=not decoding and not self._answered):
            self._chunk_s = self._budget.seconds(time.monotonic() - self._drawn_at, decoding=decoding)

    def _decode(self, events: list[EngineEvent]) -> None:
        """One token for every sequence. With a chunk to come the device is not given a further pass before it."""
        if not len(self._batch):
            return
        ahead = self._device.works_ahead and (not self._prefills.has_work or self._budget.decodes_again)
        begun = time.monotonic()
        self._batch.step(events, self._answered, ahead=ahead)
        self._drawn_at = time.monotonic()
        self._budget.record_decode(self._drawn_at - begun)

    def _keep_answers(self, events: list[EngineEvent]) -> None:
        """And tell of their ends: the next turn then finds them, and a device that has time for it."""
        answered = list(self._answered)
        events += self._ends()
        self._keeping.answers(answered)

    def _ends(self) -> list[EngineEvent]:
        """Of the answers that nobody was told the end of."""
        ends: list[EngineEvent] = [answer.end for answer in self._answered if answer.end is not None]
        self._answered.clear()
        return ends

    def _prefill(self, events: list[EngineEvent]) -> None:
        beside = len(self._batch)
        chunk = self._prefills.read(self._chunk_s, beside=beside)
        for prefill in chunk.completed:
            if isinstance(prefill.request, Generate):
                self._unsteered.add([Newcomer(prefill.request, prefill.layers, aside=prefill.aside)])
            else:
                self._answered.append(left_by(prefill, Finished(prefill.id, "stop")))
        self._budget.record_chunk(chunk.seconds, decoding=beside > 0)
        events += chunk.events

    def _begin_answers(self, events: list[EngineEvent]) -> None:
        """Decode what is read, once its grammar is there."""
        ready, refused = self._unsteered.ready(events, wait=len(self._unsteered) == len(self._scheduler.running))
        self._answered += map(unanswered, refused)
        if ready:
            self._batch.add(ready)
            self._batch.end_failed(events, self._answered)

    def _remove(self, id: int, events: list[EngineEvent]) -> None:
        """Take a cancelled request out of whatever phase it is in; what was read stays read. It has no more events."""
        if id in self._prefills:
            self._keeping.answers([left_by(self._prefills.remove(id))])
        elif id in self._batch:
            self._keeping.answers([self._batch.remove(id)])
        elif newcomer := self._unsteered.remove(id):
            self._keeping.answers([unanswered(newcomer)])
        else:
            self._answered[:] = [a._replace(end=None) if a.request.id == id else a for a in self._answered]

    def _relieve(self, events: list[EngineEvent]) -> None:
        """End the newest request where memory is too short for all."""
        if (newest := self._memory.too_many(self._scheduler.running)) is not None:
            events.append(Failed(newest, "memory", OUT_OF_MEMORY))
            self._remove(newest, events)

    # ---- faults

    def _drop_failed_prompts(self) -> None:
        """What was read of them is kept in the next step."""
        self._answered += map(left_by, self._prefills.drop_failed())

    def _homeless(self, events: list[EngineEvent]) -> frozenset[int]:
        """Who holds a slot, is in no phase, and has not been told of its end."""
        ended = {event.id for event in events if isinstance(event, Finished | Failed)}
        return self._scheduler.running - ended - {request.id for request, _ in self._memory.running()}

    def _release(self, events: list[EngineEvent]) -> None:
        """The slots of those that these events are the end of."""
        for event in events:
            if isinstance(event, Finished | Failed) and event.id is not None:
                self._scheduler.release(event.id)


def _nothing() -> None:
    pass
