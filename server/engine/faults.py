"""What the failure of a piece of work ends: the requests that it was done for, or all. Runs in the engine process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from server.engine.device.device import Device
from server.engine.device.failures import explain
from server.engine.prefixes.prefix_cache import PrefixCache
from server.engine_client.protocol import EngineEvent, Failed

log = logging.getLogger("configi.engine")


class Faults:
    """`homeless`: who holds a slot, is in no phase, and is not told of its end by these events.

    `lost`: the device has failed, and this is the last event. Nothing may be asked of the engine any more, and nothing
    that it holds be kept.
    """

    def __init__(
        self, device: Device, prefixes: PrefixCache, homeless: Callable[[list[EngineEvent]], Iterable[int]]
    ) -> None:
        self.lost: Failed | None = None
        self._device = device
        self._prefixes = prefixes
        self._homeless = homeless

    def attempt(
        self,
        work: Callable[[list[EngineEvent]], None],
        events: list[EngineEvent],
        drop: Callable[[], None] = lambda: None,
    ) -> None:
        """`work` adds to `events`. When it fails, `drop` lets go of what it was done for, and every request that is
        nowhere afterwards gets the error."""
        if self.lost:
            return
        try:
            work(events)
        except Exception as error:
            failure = explain(error)
            log.error("step failed: %s", failure.message, exc_info=error)
            # The traceback holds the failed caches alive; let go of both before the next step allocates.
            error.__traceback__ = None
            if failure.lost:
                self.lost = Failed(None, failure.kind, failure.message)
                return
            drop()
            if failure.kind == "memory":
                self._prefixes.shrink(0)
            self._device.let_go_after_a_failure()
            events += [Failed(id, failure.kind, failure.message) for id in sorted(self._homeless(events))]
