"""Which model is in memory, one at a time. HTTP process, on the event loop.

A request takes a `Lease`; whoever needs another model waits until the leases of the one in memory are given back, in
order of arrival, so that no model starves. One lock (`_turn`) orders loads, swaps and unloads, which makes the race of
an idle unload with a request impossible.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine

from server.chat.description import Description
from server.engine_client.supervisor import Supervisor
from server.errors import ConfigiError, ModelUnavailable
from server.models.acquire import Acquirer
from server.models.awake import Awake
from server.models.catalog import Catalog
from server.models.contexts import ContextLengths
from server.models.lease import Lease
from server.models.memory import Memory
from server.models.notifier import Notifier
from server.models.resident import Opener, Resident
from server.models.status import ModelStatus
from server.models.verified import Verifier
from server.settings.types import LifecycleSettings, ModelSettings
from server.text.client import TextProcess

log = logging.getLogger("configi.models")


class Residency:
    """`changes` notifies of every change of any model's status."""

    def __init__(
        self,
        settings: LifecycleSettings,
        catalog: Catalog,
        acquirer: Acquirer,
        verifier: Verifier,
        memory: Memory,
        new_supervisor: Callable[[], Supervisor],
        opener: Opener,
        awake: Awake | None = None,
    ) -> None:
        self._awake = awake or Awake()
        self._verifier = verifier
        self._memory = memory
        contexts = ContextLengths()
        self._models = {
            entry.id: Resident(entry, settings, acquirer, opener, new_supervisor(), self, contexts)
            for entry in catalog.entries
        }
        self._turn = asyncio.Lock()
        # The one in memory, or the last one that was to be.
        self._current: Resident | None = None
        self._loading: set[Resident] = set()
        self._preloading: set[str] = set()
        self._looking: dict[Resident, asyncio.Task[None]] = {}
        # Text processes that nobody needs yet are started one after the other.
        self._look_turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lease_ends = Notifier()
        self.changes = Notifier()

    @property
    def models(self) -> Collection[Resident]:
        """Every configured model, in the order of the catalog."""
        return self._models.values()

    @property
    def engine_gave_up(self) -> bool:
        """Whether the model that should be in memory has an engine that failed too often."""
        return self._current is not None and self._current.engine_gave_up

    def status(self, entry: ModelSettings) -> ModelStatus:
        return self._models[entry.id].status

    async def describe(self, entry: ModelSettings, patience_s: float) -> Description | None:
        """What the files of `entry` say, which are read for it if they are on this machine; nothing is obtained. None
        when that is not done within `patience_s`, though it goes on, or cannot be done."""
        model = self._models[entry.id]
        if known := await model.description():
            return known
        if model not in self._looking:
            self._looking[model] = self._run(self._look(model))
        await asyncio.wait({self._looking[model]}, timeout=patience_s)
        return await model.description()

    def open(self, entry: ModelSettings) -> asyncio.Future[TextProcess]:
        """The text process of `entry`, whose files are obtained if need be. Shared, so never to be cancelled.

        It fails with ModelUnavailable when they cannot be obtained or read.

        Raises:
            ModelUnavailable: a failure is too recent to try again.
        """
        model = self._models[entry.id]
        model.refuse_if_failed()
        return model.open()

    def lease(self, entry: ModelSettings, keep_alive_s: float | None = None) -> Lease:
        """A lease, granted as soon as `entry` is in memory. Its files must be there (`open`).

        `keep_alive_s`: how long it is to stay there when its last lease has ended; infinite is for ever, None as
        others or the settings say.
        `granted` fails with ModelUnavailable or InsufficientMemory when it cannot be loaded.
        """
        model = self._models[entry.id]
        model.refuse_if_failed()
        lease = model.leases.ask(keep_alive_s)
        self._awake.need(True)
        if model.engine is not None and not self._turn.locked():
            model.leases.grant(model.engine)
        else:
            self._start_loading(model)
        return lease

    def preload(self, entry: ModelSettings) -> None:
        """Bring `entry` up without a request waiting for it."""
        if entry.id not in self._preloading:
            self._preloading.add(entry.id)
            self._run(self._preload(entry))

    async def close(self) -> None:
        """End every process that works for a model."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(model.close() for model in self.models))
        self._awake.close()

    # ---- what happens to a model (`resident.Owner`)

    def status_changed(self) -> None:
        self.changes.notify()

    def lease_ended(self) -> None:
        self._awake.need(any(model.leases.in_use or model.leases.wanted for model in self.models))
        self._lease_ends.notify()

    def idle(self, model: Resident) -> None:
        self._run(self._unload_if_idle(model))

    def engine_died(self, model: Resident, error: ConfigiError) -> None:
        # Its requests have ended with it: whoever waits for that need not any longer.
        self._lease_ends.notify()
        if model.engine_gave_up:
            model.fail(ModelUnavailable(f"The engine failed repeatedly. {error.message}"))
        elif self._turn.locked():
            # Another model is about to take its place; who still wants this one asks for it.
            model.rest()
        else:
            model.set("loading", f"restarting: {error.message}")
            self._start_loading(model)

    # ---- loading and unloading

    def _start_loading(self, model: Resident) -> None:
        if model not in self._loading:
            self._loading.add(model)
            self._run(self._load(model))

    async def _load(self, model: Resident) -> None:
        """Bring `model` into memory and grant every lease that waits for it."""
        try:
            async with self._turn:
                if model.engine is None:
                    await self._check(model)
                    if await self._others_end(model):
                        await self._swap(model)
                if model.engine is not None:
                    model.leases.grant(model.engine)
        except Exception as error:
            model.leases.refuse(model.fail(error))
        finally:
            self._loading.discard(model)

    async def _check(self, model: Resident) -> None:
        """Its files are what they should be."""
        model.set("loading", "loading into memory")
        await self._verifier.check(model.known_folder(), lambda text: model.set("loading", text))

    async def _others_end(self, model: Resident) -> bool:
        """Wait for the requests of the model in memory; False when meanwhile nobody wants `model` any more."""
        while self._current is not None and self._current.engine is not None and self._current.leases.in_use:
            if not model.leases.wanted:
                model.rest()
                return False
            model.set("loading", "waiting for the requests of another model to end")
            await self._lease_ends.wait()
        return True

    async def _swap(self, model: Resident) -> None:
        """`model` instead of the one that is in memory."""
        if self._current is not None:
            await self._current.unload()
        if self._current is not model:
            # Failures in a row are those of one model.
            model.forgive()
            self._current = model
        model.set("loading", "loading into memory")
        limit = await asyncio.to_thread(self._memory.admit, model.known_folder())
        await model.load(limit)

    async def _unload_if_idle(self, model: Resident) -> None:
        async with self._turn:
            if not model.leases.in_use and not model.leases.wanted:
                await model.unload()

    async def _look(self, model: Resident) -> None:
        try:
            async with self._look_turn:
                model.refuse_if_failed()
                await model.look()
        except ConfigiError as error:
            log.info("model %s cannot be described: %s", model.entry.id, error.message)
        finally:
            self._looking.pop(model, None)

    async def _preload(self, entry: ModelSettings) -> None:
        try:
            await asyncio.shield(self.open(entry))
            with self.lease(entry) as lease:
                await asyncio.shield(lease.granted)
        except ConfigiError as error:
            log.error("model %s: %s", entry.id, error.message)
        finally:
            self._preloading.discard(entry.id)

    def _run(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
