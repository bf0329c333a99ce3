"""The engine's work on one request, from the wait for a model to the first sign of it. HTTP process.

An engine that ends takes along what it has begun with: nobody knows whether that was the reason, and some of it was
seen. What still waited for its turn is asked of the next engine, once, with the same seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from types import TracebackType

from server.chat.deltas import ModelPending
from server.engine_client.client import EngineStream
from server.engine_client.protocol import Request, TokenTable
from server.generation.places import Place
from server.generation.waiting import ModelWait
from server.models.lease import Lease
from server.models.residency import Residency
from server.settings.types import ModelSettings


class Engaged:
    """`commands` for an engine with `entry` in memory. Call `asked` until None, then `begun` until None; then `stream`
    has events or an error, and `on_slot` is to be called when it has a slot. Leaving the `with` gives all back.

    `followed_by` tells how many other requests are being made ready. A second try waits as long as the first was let.
    `on_again` is called when there is one.
    """

    stream: EngineStream
    on_slot: Callable[[], None]

    def __init__(
        self,
        residency: Residency,
        entry: ModelSettings,
        place: Place,
        wait: ModelWait,
        commands: Sequence[Request],
        *,
        followed_by: Callable[[], int],
        table: Callable[[], TokenTable] | None = None,
        keep_alive_s: float | None = None,
        on_again: Callable[[], None] = lambda: None,
    ) -> None:
        self._residency = residency
        self._entry = entry
        self._place = place
        self._commands = commands
        self._wait = wait
        self._table = table
        self._followed_by = followed_by
        self._keep_alive_s = keep_alive_s
        self._on_again = on_again
        self._held = ExitStack()
        self._lease: Lease | None = None
        self._asked = self._is_second = False

    def __enter__(self) -> Engaged:
        self._take_lease()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._held.close()

    async def asked(self) -> ModelPending | None:
        """What has become of the model since the last call; None when its engine has been asked.

        Raises:
            ConfigiError: what ends the wait.
        """
        assert self._lease is not None
        if pending := await self._wait.news(self._lease.granted):
            return pending
        engine = self._lease.granted.result()
        asked = engine.generate(self._commands, self._table, self._followed_by())
        self.stream = self._held.enter_context(closing(asked))
        self.on_slot = self._held.enter_context(self._place.wait(self.stream))
        self._asked = True
        return None

    async def begun(self) -> ModelPending | None:
        """What has become of the wait since the last call; None when an engine has begun, or it is over."""
        while True:
            if not self._asked and (pending := await self.asked()):
                return pending
            if pending := await self._place.news(self.stream, self._entry.id):
                return pending
            if not self.stream.lost or self._is_second:
                return None
            self._held.close()
            self._is_second, self._asked = True, False
            self._wait = self._wait.anew()
            self._on_again()
            self._take_lease()

    def _take_lease(self) -> None:
        self._lease = self._held.enter_context(self._residency.lease(self._entry, self._keep_alive_s))
