"""Whose the engine's memory is: the running requests' first, then what is kept of their prompts beside their caches,
then that of prefixes. Runs in the engine process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from server.engine.admission import Admission
from server.engine.batch import Answered, Batch
from server.engine.device.device import Device
from server.engine.device.pressure import SHARE, Pressure
from server.engine.prefill_queue import PrefillQueue
from server.engine.prefixes.prefix_cache import PrefixCache
from server.engine.unsteered import Unsteered
from server.engine_client.protocol import Request

log = logging.getLogger("configi.engine")


class Apportioning:
    """`cache_limit`: bytes that prefixes may take at most."""

    def __init__(
        self,
        admission: Admission,
        device: Device,
        prefixes: PrefixCache,
        cache_limit: int,
        phases: tuple[PrefillQueue, Unsteered, Batch],
    ) -> None:
        self._admission = admission
        self._device = device
        self._prefixes = prefixes
        self._cache_limit = cache_limit
        self._prefills, self._unsteered, self._batch = self._phases = phases
        self._pressure = Pressure.NORMAL
        # Of whose end nobody was told: their caches count until then.
        self.answered: list[Answered] = []

    def running(self) -> list[tuple[Request, int]]:
        """The requests that hold a slot, with the tokens in their caches."""
        answered = ((answer.request, len(answer.tokens)) for answer in self.answered if answer.end is not None)
        return [*self._unanswered(), *answered]

    def fits(self, request: Request) -> bool:
        """Beside those that run."""
        return self._admission.fits(request, self.running())

    @property
    def kv_bytes(self) -> int:
        return sum(phase.nbytes for phase in self._phases)

    def yield_to(self, pressure: Pressure) -> bool:
        """The machine is as short of memory as that: kept prefixes go before others are swapped out. They may come back
        when it is over. Whether it has become shorter."""
        shorter = pressure > self._pressure
        self._pressure = pressure
        if shorter:
            log.warning("the machine is short of memory (%s): prefixes are given up", pressure.name.lower())
            self.bound_prefixes()
            self._prefixes.shrink(self._prefixes.limit)
        return shorter

    def bound_prefixes(self, moved: int = 0, held: int = 0) -> None:
        """Running requests come before them, and `held` bytes of others. `moved`: tokens of the caches that are to
        become a prefix."""
        available = self._admission.beside(self.running(), moved) - held
        limit = min(int(self._cache_limit * SHARE[self._pressure]), available)
        if limit < (asides := self._asides):
            self._drop_asides()
            asides = 0
        self._prefixes.limit = max(0, limit - asides)
        self._prefixes.memory = max(0, available - asides)

    def too_many(self, running: frozenset[int]) -> int | None:
        """When the next step could pass the limit, evict prefixes; and where that is not enough, which of `running` is
        to end, the newest: one error instead of the end of all."""
        reading = any(True for _ in self._prefills.requests())
        limit = self._admission.limit - self._admission.working(self.running(), reading=reading)
        padded = self._admission.padded(self._unanswered())
        # Most steps are far from it, and need not look at every array.
        if self._device.active > limit - padded:
            limit -= max(0, padded - self.kv_bytes)
        if (over := self._device.active - limit) > 0:
            self._prefixes.shrink(max(0, self._prefixes.nbytes - over))
            # Not for nothing: by its aside the one that ends is kept.
            if 0 < self._device.active - limit <= self._asides:
                self._drop_asides()
        running -= {answer.request.id for answer in self.answered}
        return max(running) if running and self._device.active > limit else None

    def _unanswered(self) -> Sequence[tuple[Request, int]]:
        """Those that run in the batch, or join it when they are read."""
        return list(self._each_unanswered())

    def _each_unanswered(self) -> Iterator[tuple[Request, int]]:
        for phase in self._phases:
            yield from phase.requests()

    @property
    def _asides(self) -> int:
        """Bytes that are kept of prompts beside their caches, to be prefixes with them later."""
        return sum(phase.asides for phase in self._phases)

    def _drop_asides(self) -> None:
        for phase in self._phases:
            phase.drop_asides()
