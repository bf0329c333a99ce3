"""One configured model: its state, its files, its engine while it is in memory, its leases, its last failure.

HTTP process, on the event loop. It knows nothing of other models: `residency.py` decides which one is in memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from quantize.folder.stale_template import stale_template
from quantize.pace import Pace
from quantize.worker import RateLimit
from server.chat.description import Description
from server.engine_client.client import EngineClient
from server.engine_client.supervisor import Supervisor
from server.errors import ConfigiError, EngineFailed, ModelUnavailable
from server.models.acquire import AcquireProgress, Acquirer
from server.models.contexts import ContextLengths
from server.models.leases import Leases
from server.models.opened import OpenedFiles, stamp_of
from server.models.status import ModelStatus, State
from server.settings.types import LifecycleSettings, ModelSettings
from server.text.client import TextProcess

log = logging.getLogger("configi.models")

# A download or a build that takes hours says where it is, a line at a time.
_LOGGED_EVERY_S = 60

# Starts the text process of a model folder, given the context length to serve.
Opener = Callable[[Path, int | None], Awaitable[TextProcess]]


class Owner(Protocol):
    """Whoever decides about the models, and is notified of what happens to one."""

    def status_changed(self) -> None: ...

    def lease_ended(self) -> None: ...

    def idle(self, model: Resident) -> None:
        """It has been in memory without a request for as long as it was to stay."""

    def engine_died(self, model: Resident, error: ConfigiError) -> None: ...


class Resident:
    """What was read of its files is forgotten at a failure."""

    def __init__(
        self,
        entry: ModelSettings,
        settings: LifecycleSettings,
        acquirer: Acquirer,
        opener: Opener,
        supervisor: Supervisor,
        owner: Owner,
        contexts: ContextLengths,
    ) -> None:
        text = "not loaded yet; the first request loads it"
        self.entry = entry
        self.status = ModelStatus(entry.id, "absent", text, context_length=entry.context_length)
        self.engine: EngineClient | None = None
        self._settings = settings
        self._acquirer = acquirer
        self._opener = opener
        self._supervisor = supervisor
        self._pace = Pace()
        self._logged = RateLimit(_LOGGED_EVERY_S)
        self._owner = owner
        self._contexts = contexts
        self._opening: asyncio.Task[TextProcess] | None = None
        self.leases = Leases(settings.idle_s, owner.lease_ended, lambda: owner.idle(self))
        self._files = OpenedFiles(lambda: self.engine is not None or self.leases.wanted)
        self._warned: set[str] = set()
        self._failure: ConfigiError | None = None
        self._failed_at = 0.0
        supervisor.on_exit = self._engine_died

    def set(self, state: State, text: str, done: int = 0, total: int | None = None) -> None:
        if changed := self.status.state != state:
            self._pace.restart()
        rate = self._pace.rate(done) if total else None
        self.status = replace(self.status, state=state, text=text, done=done, total=total, rate=rate)
        if self._logged.allows(state) and (changed or total):
            log.info("model %s: %s (%s)", self.entry.id, state, self.status.line)
        self._owner.status_changed()

    def rest(self) -> None:
        """Its files are on this machine, its weights not in memory."""
        self.set("absent", "on disk, not in memory")

    # ---- its files

    def open(self) -> asyncio.Future[TextProcess]:
        """The text process of its files, which are obtained if need be. Shared, so never to be cancelled.

        Fails with ModelUnavailable when they cannot be obtained or read.
        """
        if self._files.text is not None:
            self._files.await_use()
            opened: asyncio.Future[TextProcess] = asyncio.get_running_loop().create_future()
            opened.set_result(self._files.text)
            return opened
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(self._opening_ended)
        self._files.await_use()
        return self._opening

    def _opening_ended(self, opening: asyncio.Task[TextProcess]) -> None:
        if self._opening is opening:
            # Its result would stay in memory.
            self._opening = None
        if not opening.cancelled():
            # Every caller may have left by the time it fails; the failure is in the status all the same.
            opening.exception()

    async def look(self) -> None:
        """`open` if its files are on this machine."""
        if await asyncio.to_thread(self._acquirer.locate, self.entry) is not None:
            await asyncio.shield(self.open())

    async def description(self) -> Description | None:
        """What its files say, if they were read and nobody has written them since."""
        return await self._files.description()

    async def _open(self) -> TextProcess:
        try:
            folder = await asyncio.to_thread(self._acquirer.locate, self.entry)
            if folder is None:
                self.set("building" if self.entry.acquire == "build" else "fetching", "looking for its files")
                folder = await self._acquirer.acquire(self.entry, self._show)
                self.rest()
            stamp = await asyncio.to_thread(stamp_of, folder)
            text = await self._opener(folder, await self._context_length(folder))
        except Exception as error:
            raise self.fail(error) from error
        self._files.set(folder, text, stamp)
        if stale := await asyncio.to_thread(stale_template, folder):
            self._warn(stale)
        self.status = replace(self.status, warning=stale, context_length=text.context_length)
        return text

    async def _context_length(self, folder: Path) -> int | None:
        """The configured one, else what the model was made for."""
        wanted, own = self.entry.context_length, await self._contexts.of(folder)
        if wanted and own and wanted > own:
            self._warn(
                f"context_length = {wanted} is more than the {own} tokens that it was made for; "
                "answers that need more than those may be wrong"
            )
        return wanted or own

    def _warn(self, message: str) -> None:
        """Once: its files are read again whenever they were not needed for a while."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning("model %s: %s", self.entry.id, message)

    def _show(self, progress: AcquireProgress) -> None:
        self.set(progress.phase, progress.text, progress.done, progress.total)

    def known_folder(self) -> Path:
        """The folder that `open` found. Raises the failure that has made it unknown again since."""
        if self._files.folder is None:
            raise self._failure or ModelUnavailable(f"The files of model '{self.entry.id}' are gone.")
        return self._files.folder

    # ---- its engine

    async def load(self, memory_limit: int) -> None:
        """Bring it into memory, `memory_limit` bytes at most; an engine that dies meanwhile is started again.

        Raises ModelUnavailable when it cannot be loaded, EngineFailed when its engine failed too often in a row.
        """
        folder = self.known_folder()
        while self.engine is None:
            try:
                self.engine = await self._supervisor.start(folder, memory_limit, self._show_loading)
            except EngineFailed as error:
                if self._supervisor.gave_up:
                    raise
                self.set("loading", f"starting again: {error.message}")
        if self._files.text is not None:
            self.engine.know(self._files.text.vocabulary.token_table)
        most, own = self.engine.most_tokens, self.status.context_length
        now = min(most, own) if most is not None and own is not None else most
        self.status = replace(self.status, batched=self.engine.batched, context_length_now=now)
        self.set("ready", "in memory")
        self.leases.model_loaded()

    def _show_loading(self, done: int, total: int) -> None:
        text = f"loading into memory: {done / 1e9:.2f} of {total / 1e9:.2f} GB"
        self.set("loading", text, done, total)

    async def unload(self) -> None:
        """Give its memory back, by ending its engine."""
        if self.engine is not None:
            self._forget_engine()
            self.set("unloading", "giving its memory back")
            await self._supervisor.stop()
            if self._files.text is not None:
                await self._files.text.rest()
            self.rest()

    async def close(self) -> None:
        """End whatever runs for it."""
        self._forget_engine()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        await self._files.close()
        await self._supervisor.stop()

    @property
    def engine_gave_up(self) -> bool:
        """Its engine failed more often in a row than `engine.restart_limit` allows."""
        return self._supervisor.gave_up

    @property
    def engine_starts(self) -> int:
        return self._supervisor.starts

    def _engine_died(self, error: ConfigiError) -> None:
        self._forget_engine()
        self._owner.engine_died(self, error)

    def _forget_engine(self) -> None:
        self.engine = None
        self.status = replace(self.status, context_length_now=None)
        self.leases.model_unloaded()
        self._files.await_use()

    # ---- its failures

    def fail(self, error: Exception) -> ConfigiError:
        """Remember `error` as what users are told. The next try looks at its files anew: they may have been mended."""
        if isinstance(error, EngineFailed):
            # It describes one try; after the last one it is the model that is unavailable.
            failure: ConfigiError = ModelUnavailable(f"The model could not be loaded: {error.message}")
        elif isinstance(error, ConfigiError):
            failure = error
        else:
            log.error("model %s failed", self.entry.id, exc_info=error)
            failure = ModelUnavailable("The model is unavailable; the server's log has the reason.")
        self._failure, self._failed_at = failure, time.monotonic()
        self._files.forget()
        self.set("failed", failure.message)
        return failure

    def refuse_if_failed(self) -> None:
        """Raise a recent failure; an old one is forgotten, and the model tried again."""
        if self._failure is None:
            return
        if time.monotonic() - self._failed_at < self._settings.failed_retry_s:
            raise self._failure.with_traceback(None)
        self._failure = None
        self.forgive()
        self.set("absent", "trying again")

    def forgive(self) -> None:
        """Count failures of its engine anew."""
        self._supervisor.forgive()
