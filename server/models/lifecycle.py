"""Which model is resident, and how it comes and goes. HTTP process.

One model is resident at a time. A request takes a `Lease`; whoever needs another model waits until the leases of
the resident one are given back, in order of arrival, so that neither model starves. Everything runs on the event
loop; one lock (`_turn`) orders loads, swaps and unloads, which makes the race of an idle unload with a request
impossible.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Generic, TypeVar

from server.engine_client.client import EngineClient
from server.engine_client.supervisor import Supervisor
from server.errors import ConfigiError, EngineFailed, ModelUnavailable
from server.models.acquire import AcquireProgress, Acquirer
from server.models.catalog import Catalog
from server.models.lease import Lease
from server.models.memory import Memory
from server.models.record import ModelRecord
from server.models.status import ModelStatus
from server.models.verified import Verifier
from server.settings.types import LifecycleSettings, ModelSettings

log = logging.getLogger("configi.models")

T = TypeVar("T")


class Lifecycle(Generic[T]):
    """`opener` reads what the HTTP process needs of a folder, in a thread, given the configured context length."""

    def __init__(
        self,
        settings: LifecycleSettings,
        catalog: Catalog,
        acquirer: Acquirer,
        verifier: Verifier,
        memory: Memory,
        supervisor: Supervisor,
        opener: Callable[[Path, int | None], T],
    ) -> None:
        self._settings = settings
        self._acquirer = acquirer
        self._verifier = verifier
        self._memory = memory
        self._supervisor = supervisor
        self._opener = opener
        self._models = {entry.id: ModelRecord[T](entry, self._on_change) for entry in catalog.entries}
        self._turn = asyncio.Lock()
        self._resident: ModelRecord[T] | None = None
        self._engine: EngineClient | None = None
        # The last model that the supervisor was asked for; failures in a row are those of one model.
        self._tried: ModelRecord[T] | None = None
        self._leases = 0
        self._idle: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._lease_ended = asyncio.Event()
        supervisor.on_exit = self._engine_died

    @property
    def engine(self) -> EngineClient | None:
        return self._engine

    @property
    def engine_gave_up(self) -> bool:
        return self._supervisor.gave_up

    @property
    def engine_starts(self) -> int:
        return self._supervisor.starts

    def status(self, entry: ModelSettings) -> ModelStatus:
        return self._models[entry.id].status

    def changed(self) -> Coroutine[None, None, object]:
        """Awaitable: the next change, after this call, of any model's status."""
        return self._changed.wait()

    def opened(self, entry: ModelSettings) -> T | None:
        """What `open` has given, if it was called."""
        return self._models[entry.id].opened

    async def open(self, entry: ModelSettings) -> T:
        """The files of `entry` as the opener reads them, fetched if need be. A caller that leaves stops nothing.

        Raises:
            ModelUnavailable: the files cannot be had or read, or a failure is too recent to try again.
        """
        m = self._models[entry.id]
        self._refuse_failed(m)
        if m.opened is not None:
            return m.opened
        if m.opening is None:
            m.opening = asyncio.create_task(self._open(m))
            # Every caller may have left by the time it fails; the failure is in the status all the same.
            m.opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(m.opening)

    def lease(self, entry: ModelSettings) -> Lease:
        """A lease, granted as soon as `entry` is resident. Its files must be there (`open`).

        `granted` fails with ModelUnavailable or InsufficientMemory when it cannot be loaded.
        """
        m = self._models[entry.id]
        self._refuse_failed(m)
        lease = Lease(self._on_lease_end)
        if self._engine is not None and self._resident is m and not self._turn.locked():
            self._grant(lease, self._engine)
        else:
            m.queue.append(lease)
            self._start_loading(m)
        return lease

    def preload(self, entry: ModelSettings) -> None:
        """Bring `entry` up without a request waiting for it."""
        self._run(self._preload(entry))

    async def close(self) -> None:
        """End every child process."""
        tasks = [*self._tasks, *(t for m in self._models.values() for t in (m.opening, m.loading) if t)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._disarm_idle()
        self._engine = None
        await self._supervisor.stop()

    # ---- the files

    async def _open(self, m: ModelRecord[T]) -> T:
        try:
            folder = await asyncio.to_thread(self._acquirer.locate, m.entry)
            if folder is None:
                m.set("building" if m.entry.acquire == "build" else "fetching", "looking for its files")
                folder = await self._acquirer.acquire(m.entry, lambda p: self._progress(m, p))
                m.rest()
            opened = await asyncio.to_thread(self._opener, folder, m.entry.context_length)
            m.folder, m.opened = folder, opened
            return opened
        except Exception as error:
            raise m.fail(error) from error
        finally:
            m.opening = None

    def _progress(self, m: ModelRecord[T], progress: AcquireProgress) -> None:
        m.set(progress.phase, progress.text, progress.done, progress.total)

    # ---- loading and unloading

    def _start_loading(self, m: ModelRecord[T]) -> None:
        if m.loading is None:
            m.loading = asyncio.create_task(self._load(m))

    async def _load(self, m: ModelRecord[T]) -> None:
        """Make `m` resident and grant every lease that waits for it."""
        try:
            async with self._turn:
                engine = self._engine if self._resident is m else None
                if engine is None:
                    folder = await self._checked(m)
                    if await self._others_end(m):
                        engine = await self._replace_resident(m, folder)
                while m.queue:
                    lease = m.queue.popleft()
                    if engine is not None:
                        self._grant(lease, engine)
        except Exception as error:
            told = m.fail(error)
            while m.queue:
                m.queue.popleft().refuse(told)
        finally:
            m.loading = None

    async def _checked(self, m: ModelRecord[T]) -> Path:
        """The folder of `m`, whose files are what they should be."""
        m.set("loading", "loading into memory")
        if m.folder is None:
            m.raise_failure()
            raise ModelUnavailable(f"The files of model '{m.entry.id}' are gone.")
        await self._verifier.check(m.folder, lambda text: m.set("loading", text))
        return m.folder

    async def _others_end(self, m: ModelRecord[T]) -> bool:
        """Wait for the requests of the resident model; False when meanwhile nobody wants `m` any more."""
        while self._engine is not None and self._leases:
            if not m.wanted:
                m.rest()
                return False
            m.set("loading", "waiting for the requests of another model to end")
            await self._lease_ended.wait()
        return True

    async def _replace_resident(self, m: ModelRecord[T], folder: Path) -> EngineClient:
        await self._unload()
        m.set("loading", "loading into memory")
        if self._tried is not m:
            self._tried = m
            self._supervisor.forgive()
        await asyncio.to_thread(self._memory.check, folder)
        engine = await self._start_engine(m, folder)
        self._resident, self._engine = m, engine
        m.set("ready", "in memory")
        self._arm_idle()
        return engine

    async def _start_engine(self, m: ModelRecord[T], folder: Path) -> EngineClient:
        while True:
            try:
                return await self._supervisor.start(folder)
            except EngineFailed as error:
                if self._supervisor.gave_up:
                    raise
                m.set("loading", f"starting again: {error.message}")

    async def _unload(self) -> None:
        m, self._resident, self._engine = self._resident, None, None
        if m is not None:
            m.set("unloading", "giving its memory back")
            await self._supervisor.stop()
            m.rest()

    def _engine_died(self, error: ConfigiError) -> None:
        """The supervisor's call: restart with back-off, or give up."""
        m, self._resident, self._engine = self._resident, None, None
        if m is None:
            return
        # Who waits for these requests to end need not any more.
        self._tell_lease_ended()
        if self._supervisor.gave_up:
            m.fail(ModelUnavailable(f"The engine failed repeatedly. {error.message}"))
        elif self._turn.locked():
            # Another model is about to take its place; who still wants this one asks for it.
            m.rest()
        else:
            m.set("loading", f"restarting: {error.message}")
            self._start_loading(m)

    async def _preload(self, entry: ModelSettings) -> None:
        try:
            await self.open(entry)
            lease = self.lease(entry)
            try:
                await lease.granted
            finally:
                lease.release()
        except ConfigiError as error:
            log.error("model %s: %s", entry.id, error.message)

    # ---- leases

    def _grant(self, lease: Lease, engine: EngineClient) -> None:
        if lease.waiting:
            lease.granted.set_result(engine)
            self._leases += 1
            self._disarm_idle()

    def _on_lease_end(self, was_granted: bool) -> None:
        if was_granted:
            self._leases -= 1
            if self._leases == 0:
                self._arm_idle()
        self._tell_lease_ended()

    def _tell_lease_ended(self) -> None:
        self._lease_ended.set()
        self._lease_ended = asyncio.Event()

    def _arm_idle(self) -> None:
        self._disarm_idle()
        if self._settings.idle_unload_s and self._engine is not None:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(self._settings.idle_unload_s, lambda: self._run(self._idle_unload()))

    def _disarm_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    async def _idle_unload(self) -> None:
        async with self._turn:
            if not self._leases:
                await self._unload()

    # ---- the rest

    def _refuse_failed(self, m: ModelRecord[T]) -> None:
        """A recent failure is answered from memory; an old one is forgotten and tried again."""
        if m.raise_failure(self._settings.failed_retry_s):
            self._supervisor.forgive()

    def _on_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _run(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
