"""The prompts that hold a slot and are not read yet: whose chunk is next, what is reused, and what is kept.

Runs in the engine process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_lm.models.cache import make_prompt_cache

from server.engine import kv
from server.engine.admission import Admission
from server.engine.checkpoint_keeping import CheckpointKeeping
from server.engine.checkpoints import checkpoints_behind
from server.engine.prefill import Prefill
from server.engine.prefixes.prefix_cache import Hit, PrefixCache
from server.engine.reading import Reading
from server.engine.reading_memory import ReadingMemory
from server.engine.scheduler import PrefillScheduler
from server.engine.scoring.deciding import Deciding
from server.engine.scoring.prompt_logprobs import Scoring
from server.engine.token_budget import TokenBudget
from server.engine_client.protocol import EngineEvent, Prefilled, Request, ScoreOptions

# While others decode, nothing is read in a chunk of which more than this part went by before.
_STARTING_SHARE = 0.5
# With nothing to do but wait for the disk, a step does so no longer than this: commands must be heard.
_DISK_WAIT_S = 0.02


@dataclass(slots=True)
class Chunk:
    """What a step read, in `seconds`, bookkeeping counted; and the prompts that it completed."""

    seconds: float = 0.0
    completed: Sequence[Prefill] = ()
    events: list[EngineEvent] = field(default_factory=list)


class PrefillQueue:
    """`trimmable`: whether all layers of the model are.
    `together`: several prompts can be read in one forward pass."""

    def __init__(
        self,
        model: Any,
        admission: Admission,
        budget: TokenBudget,
        prefixes: PrefixCache,
        *,
        trimmable: bool,
        together: bool = True,
    ) -> None:
        self._model = model
        self._budget = budget
        self._prefixes = prefixes
        # Whether a checkpoint can be cut out of the caches after the pass that went beyond it.
        self._can_go_back = kv.can_go_back(make_prompt_cache(model))
        self._together = together
        self._scheduler = PrefillScheduler()
        self._prefills: dict[int, Prefill] = {}
        # Those that can be read, at the last look.
        self._ready: list[Prefill] = []
        # What is left of the turn of the prompt that was read last, and who could be read then.
        self._turn_s, self._turn_of = 0.0, set[int]()
        self._checkpoints = CheckpointKeeping(prefixes, trimmable=trimmable)
        # Those that the chunk under way is of.
        self._reading: list[int] = []
        # Those that something is done for at this moment, and ends when that fails.
        self._at_fault: list[int] = []
        self._memory = ReadingMemory(admission, prefixes)
        self._passes = Reading(model, budget, self._memory, self._scheduler, self._checkpoints)

    def __contains__(self, id: int) -> bool:
        return id in self._prefills

    def requests(self) -> Iterator[tuple[Request, int]]:
        """Each with the tokens in its cache."""
        for prefill in self._prefills.values():
            yield prefill.request, prefill.done

    @property
    def nbytes(self) -> int:
        return sum(kv.nbytes(prefill.layers) for prefill in self._prefills.values())

    @property
    def peak_bytes(self) -> int:
        """Of the process."""
        return self._memory.peak_bytes

    def add(self, request: Request) -> None:
        same = next((p.id for p in self._prefills.values() if _finds_what_is_kept_of(request, p.request)), None)
        self._prefills[request.id] = self._reader(request, same)

    def _reader(self, request: Request, waits_for: int | None) -> Prefill:
        if isinstance(request, ScoreOptions):
            return Deciding(self._model, request, waits_for, together=self._together)
        return (Scoring if request.prompt_logprobs else Prefill)(self._model, request, waits_for)

    def remove(self, id: int) -> Prefill:
        """Take out `id`, with what was read of its prompt."""
        prefill = self._prefills[id]
        del self._prefills[id]
        self._memory.drop(id)
        # It holds its caches.
        self._ready = [other for other in self._ready if other.id != id]
        if prefill.restore is not None:
            self._prefixes.disk.cancel(prefill.restore)
        prefill.undo()
        return prefill

    def drop_failed(self) -> list[Prefill]:
        """Take out the prompts for which something was done that has failed, with what was read before and is as it
        was."""
        return [self.remove(id) for id in self._at_fault if id in self._prefills]

    @property
    def has_work(self) -> bool:
        """Whether there was a prompt to read at the last `look`."""
        return bool(self._ready)

    def look(self, *, wait: bool) -> bool:
        """Whether there is a prompt to read. With nothing else to do there is time to `wait` for the disk."""
        self._ready, self._at_fault = [], []
        self._prefixes.disk.tend_while_busy()
        for prefill in self._prefills.values():
            self._at_fault = [prefill.id]
            if self._is_ready(prefill):
                self._ready.append(prefill)
        self._at_fault = []
        if wait and self._prefills and not self._ready:
            self._prefixes.disk.wait_for_read(_DISK_WAIT_S)
        return self.has_work

    def read(self, seconds: float, *, beside: int = 0) -> Chunk:
        """Read for some `seconds`: some layers of a pass over one prompt, or all of a pass over several that are short.
        While others decode, `beside` of them, finding what was read before and keeping what is read now are done within
        that time."""
        chunk, ready, begun = Chunk(), self._ready, time.monotonic()
        chosen = self._next(seconds, beside)
        self._reading = self._at_fault = [chosen.id]
        # Copying what is found may take long.
        enough = begun + seconds * _STARTING_SHARE if beside else math.inf
        if not chosen.started:
            chunk.events.append(self._start(chosen))
        parts = []
        if chosen.under_way is None and time.monotonic() <= enough:
            parts = self._plan(chosen, ready, seconds, beside > 0, enough, chunk.events)
        spent = time.monotonic() - begun if beside else 0.0
        if time.monotonic() > enough:
            chunk.seconds = spent
            return chunk
        seconds -= spent
        if chosen.under_way is not None:
            read = self._passes.go_on(chosen, seconds, beside)
        else:
            read = self._passes.begin(parts, seconds, beside)
        if not read and chosen.under_way is not None:
            chunk.events.append(Prefilled(chosen.id, chosen.progress, len(chosen.request.prompt)))
        for prefill, before in read:
            chunk.events.append(self._advanced(prefill, before))
        chunk.completed = [prefill for prefill in ready if prefill.started and not prefill.remaining]
        for prefill in chunk.completed:
            chunk.events += self._complete(prefill)
        chunk.seconds = time.monotonic() - begun
        self._turn_s -= chunk.seconds
        return chunk

    def _next(self, seconds: float, beside: int) -> Prefill:
        """Whose chunk it is. A pass that is cut for those who may come or leave goes on, for `seconds` in all, when
        nobody has come: prompts that take turns more often are all read later."""
        ids = {prefill.id for prefill in self._ready}
        last = next((prefill for prefill in self._ready if prefill.under_way and [prefill.id] == self._reading), None)
        if last is None or beside or self._turn_s <= 0 or not ids <= self._turn_of:
            last, self._turn_s = self._scheduler.next(self._ready), seconds
        self._turn_of = ids
        return last

    # ---- planning

    def _is_ready(self, prefill: Prefill) -> bool:
        """Not while what it can continue from comes from disk, nor while another reads the same prompt."""
        if prefill.waits_for in self._prefills:
            return False
        if not prefill.started and prefill.restore is None and prefill.reuses_prefixes:
            request = prefill.request
            prefill.restore = self._prefixes.restore(request.prompt, request.cache_salt, prefill.unread)
        return prefill.restore is None or prefill.restore.done

    def _plan(
        self,
        chosen: Prefill,
        ready: Sequence[Prefill],
        seconds: float,
        decoding: bool,
        enough: float,
        events: list[EngineEvent],
    ) -> list[tuple[Prefill, int]]:
        """What is read with `chosen`, and how many tokens of each: several where a pass over all is over in time. None
        is begun after the time `enough`."""
        most = self._memory.max_chunk(chosen)
        size = min(most, self._budget.whole_tokens(seconds))
        most_together = self._memory.max_chunk(chosen, together=True)
        room = min(most_together, self._budget.group_tokens(seconds, decoding=decoding))
        longest_pass = min(most, self._budget.pass_tokens(seconds, len(chosen.layers))) if chosen.batchable else size
        parts = [(chosen, self._part(chosen, longest_pass))]
        for other in ready:
            if other is chosen or other.under_way or not (self._together and chosen.batchable and other.batchable):
                continue
            # Each is padded to the longest, and padding must not cost more than reading the weights again would.
            longest = max(tokens for _, tokens in parts)
            if longest * (len(parts) + 1) > room or time.monotonic() > enough:
                break
            if not other.started:
                self._at_fault = [other.id]
                events.append(self._start(other))
                self._at_fault = self._reading
            tokens = self._part(other, size)
            if longest and longest / 2 <= tokens <= longest * 2 and max(longest, tokens) * (len(parts) + 1) <= room:
                parts.append((other, tokens))
                self._reading.append(other.id)
        return [(prefill, tokens) for prefill, tokens in parts if tokens]

    def _part(self, prefill: Prefill, size: int) -> int:
        """Tokens to the end of the pass, of the prompt, or to where a checkpoint must be taken."""
        # Layers that cannot go back must be kept as they are at a checkpoint.
        stops = [] if self._can_go_back else checkpoints_behind(prefill.found, prefill.request)
        # Passes of one size, rather than a short one at the end that reads all weights too.
        passes = -(-prefill.unread // size)
        return prefill.part(-(-prefill.unread // passes) if passes else size, stops)

    def _start(self, prefill: Prefill) -> EngineEvent:
        """Find what was read before."""
        request = prefill.request
        hit = Hit(None, 0, 0)
        if prefill.reuses_prefixes:
            hit = self._prefixes.find(request.prompt, request.cache_salt, prefill.unread)
        prefill.start(hit.layers, hit.length)
        self._memory.begin(request.id, hit.length)
        return Prefilled(request.id, hit.length, len(request.prompt), hit.length, hit.shared)

    # ---- reading

    def _advanced(self, prefill: Prefill, before: int) -> EngineEvent:
        request = prefill.request
        self._checkpoints.passed(prefill, before)
        return Prefilled(
            request.id,
            prefill.done,
            len(request.prompt),
            peak=None if prefill.remaining else self._memory.end(prefill.id),
        )

    def _complete(self, prefill: Prefill) -> list[EngineEvent]:
        self._checkpoints.completed(prefill)
        del self._prefills[prefill.id]
        # It holds its caches.
        self._ready = [other for other in self._ready if other is not prefill]
        events = prefill.result()
        prefill.undo()
        return events

    @property
    def asides(self) -> int:
        """Bytes."""
        return sum(prefill.aside.nbytes for prefill in self._prefills.values() if prefill.aside is not None)

    def drop_asides(self) -> None:
        for prefill in self._prefills.values():
            prefill.aside = None


def _finds_what_is_kept_of(request: Request, other: Request) -> bool:
    return (request.prompt, request.cache_salt) == (other.prompt, other.cache_salt)
