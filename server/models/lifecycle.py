"""Which model is resident, and how it comes and goes. HTTP process.

One model is resident at a time. A request takes a `Lease`; whoever needs another model waits until the leases of
the resident one are given back, in order of arrival, so that neither model starves. Everything runs on the event
loop; one lock (`_turn`) orders loads, swaps and unloads, which makes the race of an idle unload with a request
impossible.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path

from server.engine.client import EngineClient
from server.engine.supervisor import Supervisor
from server.errors import ConfigiError, EngineFailed, ModelUnavailable
from server.models.acquire import Acquirer, Progress
from server.models.catalog import Catalog
from server.models.memory import Memory
from server.models.status import ModelStatus, State
from server.models.verified import Verifier
from server.settings import LifecycleSettings, ModelSettings

log = logging.getLogger("configi.models")


class Lease:
    """The right to use the resident model: wait for `granted`, then `release`, whatever came of it."""

    def __init__(self, on_release: Callable[[], None]) -> None:
        self.granted: asyncio.Future[EngineClient] = asyncio.get_running_loop().create_future()
        self._on_release = on_release
        self._released = False

    def release(self) -> None:
        """Also of a lease that is still waiting. Again is harmless."""
        if self._released:
            return
        self._released = True
        if not self.granted.done():
            self.granted.cancel()
        elif not self.granted.cancelled() and self.granted.exception() is None:
            self._on_release()


@dataclass
class _Model:
    """What is known of one catalog entry."""

    entry: ModelSettings
    state: State = "absent"
    text: str = "not loaded yet; the first request loads it"
    done: int = 0
    total: int | None = None
    folder: Path | None = None
    error: ConfigiError | None = None
    failed_at: float = 0.0
    acquiring: asyncio.Task[Path] | None = None
    loading: asyncio.Task[None] | None = None
    queue: deque[Lease] = field(default_factory=deque)


class Lifecycle:
    def __init__(
        self,
        settings: LifecycleSettings,
        catalog: Catalog,
        acquirer: Acquirer,
        verifier: Verifier,
        memory: Memory,
        supervisor: Supervisor,
    ) -> None:
        self._settings = settings
        self._acquirer = acquirer
        self._verifier = verifier
        self._memory = memory
        self._supervisor = supervisor
        self._models = {entry.id: _Model(entry) for entry in catalog.entries}
        self._turn = asyncio.Lock()
        self._resident: _Model | None = None
        self._engine: EngineClient | None = None
        self._leases = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._idle: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
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
        m = self._models[entry.id]
        return ModelStatus(
            id=entry.id,
            state=m.state,
            text=m.text,
            done=m.done,
            total=m.total,
            context_length=entry.context_length,
            on_disk=m.folder is not None,
        )

    def changed(self) -> Coroutine[None, None, object]:
        """Awaitable: the next change, after this call, of any model's status."""
        return self._changed.wait()

    async def files(self, entry: ModelSettings) -> Path:
        """The folder of `entry`, fetched if need be. A caller that leaves does not stop the transfer.

        Raises:
            ModelUnavailable: the files cannot be had, or a failure is too recent to try again.
        """
        m = self._models[entry.id]
        self._refuse_failed(m)
        if m.folder is not None:
            return m.folder
        if m.acquiring is None:
            m.acquiring = asyncio.create_task(self._acquire(m))
            # Every caller may have left by the time it fails; the failure is in the status all the same.
            m.acquiring.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(m.acquiring)

    def lease(self, entry: ModelSettings) -> Lease:
        """A lease, granted as soon as `entry` is resident. Its files must be there (`files`).

        `granted` fails with ModelUnavailable or InsufficientMemory when it cannot be loaded.
        """
        m = self._models[entry.id]
        self._refuse_failed(m)
        lease = Lease(self._release)
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
        tasks = [*self._tasks, *(t for m in self._models.values() for t in (m.acquiring, m.loading) if t)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._idle is not None:
            self._idle.cancel()
        self._engine = None
        await self._supervisor.stop()

    # ---- acquiring

    async def _acquire(self, m: _Model) -> Path:
        try:
            m.folder = await asyncio.to_thread(self._acquirer.locate, m.entry)
            if m.folder is None:
                self._set(m, "building" if m.entry.acquire == "build" else "fetching", "looking for its files")
                m.folder = await self._acquirer.acquire(m.entry, lambda p: self._progress(m, p))
                self._set(m, "absent", "on disk, not in memory")
            return m.folder
        except Exception as error:
            raise self._fail(m, error) from error
        finally:
            m.acquiring = None

    def _progress(self, m: _Model, progress: Progress) -> None:
        self._set(m, progress.phase, progress.text, progress.done, progress.total)

    # ---- loading and unloading

    def _start_loading(self, m: _Model) -> None:
        if m.loading is None:
            m.loading = asyncio.create_task(self._load(m))

    async def _load(self, m: _Model) -> None:
        """Make `m` resident and grant every lease that waits for it."""
        try:
            async with self._turn:
                engine = self._engine
                if engine is None or self._resident is not m:
                    engine = await self._replace_resident(m)
                m.loading = None
                while m.queue:
                    self._grant(m.queue.popleft(), engine)
        except Exception as error:
            m.loading = None
            self._load_failed(m, error)

    async def _replace_resident(self, m: _Model) -> EngineClient:
        if m.folder is None:
            raise ModelUnavailable(f"The files of model '{m.entry.id}' are gone.")
        self._set(m, "loading", "checking its files")
        await self._verifier.check(m.folder, lambda text: self._set(m, "loading", text))
        if not self._unused.is_set():
            self._set(m, "loading", "waiting for the requests of another model to end")
            await self._unused.wait()
        await self._unload()
        self._set(m, "loading", "loading into memory")
        await asyncio.to_thread(self._memory.check, m.folder)
        while True:
            try:
                engine = await self._supervisor.start(m.folder)
                break
            except EngineFailed as error:
                if self._supervisor.gave_up:
                    raise
                self._set(m, "loading", f"starting again: {error.message}")
        self._resident, self._engine = m, engine
        self._set(m, "ready", "in memory")
        self._arm_idle()
        return engine

    def _load_failed(self, m: _Model, error: Exception) -> None:
        told = self._fail(m, error)
        while m.queue:
            lease = m.queue.popleft()
            if not lease.granted.done():
                lease.granted.set_exception(told)
                # The holder may be about to leave without looking.
                lease.granted.exception()

    async def _unload(self) -> None:
        m, self._resident, self._engine = self._resident, None, None
        if m is not None:
            self._set(m, "unloading", "giving its memory back")
            await self._supervisor.stop()
            self._set(m, "absent", "on disk, not in memory")

    def _engine_died(self, error: ConfigiError) -> None:
        """The supervisor's call: restart with back-off, or give up."""
        m, self._resident, self._engine = self._resident, None, None
        if m is None:
            return
        if self._supervisor.gave_up:
            self._fail(m, ModelUnavailable(f"The engine failed repeatedly. {error.message}"))
        elif self._turn.locked():
            # Another model is about to take its place; who still wants this one asks for it.
            self._set(m, "absent", "on disk, not in memory")
        else:
            self._set(m, "loading", f"restarting: {error.message}")
            self._start_loading(m)

    async def _preload(self, entry: ModelSettings) -> None:
        try:
            await self.files(entry)
            lease = self.lease(entry)
            try:
                await lease.granted
            finally:
                lease.release()
        except ConfigiError as error:
            log.error("model %s: %s", entry.id, error.message)

    # ---- leases

    def _grant(self, lease: Lease, engine: EngineClient) -> None:
        if lease.granted.done():
            return
        lease.granted.set_result(engine)
        self._leases += 1
        self._unused.clear()
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _release(self) -> None:
        self._leases -= 1
        if self._leases == 0:
            self._unused.set()
            self._arm_idle()

    def _arm_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._settings.idle_unload_s and self._engine is not None:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(self._settings.idle_unload_s, lambda: self._run(self._idle_unload()))

    async def _idle_unload(self) -> None:
        async with self._turn:
            if self._unused.is_set():
                await self._unload()

    # ---- states

    def _refuse_failed(self, m: _Model) -> None:
        """A recent failure is answered from memory; an old one is forgotten and tried again."""
        if m.error is None:
            return
        if time.monotonic() - m.failed_at < self._settings.failed_retry_s:
            raise m.error.with_traceback(None)
        m.error = None
        self._supervisor.forgive()
        self._set(m, "absent", "trying again")

    def _fail(self, m: _Model, error: Exception) -> ConfigiError:
        """Remember `error` as what users are told until `failed_retry_s` have passed."""
        if isinstance(error, EngineFailed):
            # It describes one try; after the last one it is the model that is unavailable.
            error = ModelUnavailable(f"The model could not be loaded: {error.message}")
        elif not isinstance(error, ConfigiError):
            log.error("model %s failed", m.entry.id, exc_info=error)
            error = ModelUnavailable("The model cannot be had; the server's log has the reason.")
        m.error, m.failed_at = error, time.monotonic()
        self._set(m, "failed", error.message)
        return error

    def _set(self, m: _Model, state: State, text: str, done: int = 0, total: int | None = None) -> None:
        if m.state != state:
            log.info("model %s: %s (%s)", m.entry.id, state, text)
        m.state, m.text, m.done, m.total = state, text, done, total
        self._changed.set()
        self._changed = asyncio.Event()

    def _run(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
