"""Starts, watches and ends the engine process. HTTP process.

It notices exit and hang alike (no sign of life while work is waiting), ends what was in flight with an error, and
counts failures in a row for the back-off before the next start. Whether to start again is the caller's decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq.asyncio

from server.engine_client.client import EngineClient, OnLoading
from server.engine_client.protocol import LOST, Load
from server.engine_client.socket_folder import SocketFolder
from server.errors import ConfigiError, EngineFailed
from server.settings.chip import defaults_here, metal_environment
from server.settings.types import EngineSettings, Settings

log = logging.getLogger("configi.supervisor")

# -P: a folder named `server` in the working directory must not be imported instead.
ENGINE_COMMAND = (sys.executable, "-P", "-m", "server.engine")
# A process that was asked to stop gets this long before it is killed.
_STOP_S = 5.0
# Its last words are on their way when it has exited; this machine may be slow to bring them.
_LAST_WORDS_S = 3.0


class Supervisor:
    """The engine of one model: at most one process at a time. `on_exit` is called when it ends unasked."""

    def __init__(self, settings: Settings, command: Sequence[str] = ENGINE_COMMAND) -> None:
        self._settings = settings
        self._command = command
        self._process: EngineProcess | None = None
        self._failures = 0
        self.starts = 0
        self.on_exit: Callable[[ConfigiError], None] = lambda error: None

    @property
    def gave_up(self) -> bool:
        """More failures in a row than `engine.restart_limit` allows."""
        return self._failures > self._settings.engine.restart_limit

    def forgive(self) -> None:
        """Start counting failures from zero."""
        self._failures = 0

    async def start(
        self, folder: Path, memory_limit: int = 0, on_loading: OnLoading = lambda done, total: None
    ) -> EngineClient:
        """A fresh process with the model in `folder` resident, in `memory_limit` bytes as `Load` has them. `on_loading`
        is told how many bytes of the weights, of how many, are in memory.

        Raises:
            ModelUnavailable: the folder cannot be loaded; another try would fail the same way.
            EngineFailed: the process died or took longer than `engine.load_timeout_s`.
        """
        if self._failures:
            await asyncio.sleep(self._settings.engine.restart_backoff_s * 2 ** (self._failures - 1))
        self.starts += 1
        process = EngineProcess(self._settings.engine, self._command, self._ended)
        self._process = process
        process.client.on_loading = on_loading
        try:
            return await process.start(_load_command(self._settings, folder, memory_limit))
        except BaseException as error:
            # Its memory has returned before another takes any.
            await self.stop()
            if isinstance(error, EngineFailed):
                self._failures += 1
            raise

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            # It worked in between: an earlier failure and a later one are not in a row.
            if process.client.finished:
                self.forgive()
            await process.stop()

    def _ended(self, process: EngineProcess, error: ConfigiError) -> None:
        """The process of a resident model has ended."""
        if process is not self._process:
            return
        self._process = None
        self._failures = 1 if process.client.finished else self._failures + 1
        self.on_exit(error)


class EngineProcess:
    """One process, its socket in a private folder, and the tasks that watch it."""

    def __init__(
        self,
        settings: EngineSettings,
        command: Sequence[str],
        on_exit: Callable[[EngineProcess, ConfigiError], None],
    ) -> None:
        self._limits = settings
        self._command = command
        self._on_exit = on_exit
        self._tasks: list[asyncio.Task[None]] = []
        # Not among them: what it writes before it ends is read to the end.
        self._logging: asyncio.Task[None] | None = None
        self._resident = False
        self._folder = SocketFolder()
        self._socket: zmq.asyncio.Socket = zmq.asyncio.Context.instance().socket(zmq.PAIR)
        self._socket.linger = 0
        self._socket.sndhwm = 0
        self.client = EngineClient(self._socket)

    async def start(self, command: Load) -> EngineClient:
        address = f"ipc://{self._folder.socket}"
        self._socket.bind(address)
        # stdin stays open as long as this process lives; the engine exits when it closes. A group of its own keeps
        # the terminal's Ctrl-C from killing it before running streams could finish.
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                address,
                stdin=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                env=_environment(self._limits),
            )
        except OSError as error:
            self._release()
            raise EngineFailed(f"The engine process could not be started: {error.strerror}.") from error
        self._logging = asyncio.create_task(self._log_stderr())
        self._tasks = [
            asyncio.create_task(self.client.receive()),
            asyncio.create_task(self._watch_exit()),
            asyncio.create_task(self._hear_last_words()),
            asyncio.create_task(self._watch_hang()),
        ]
        loaded = await self.client.load(command)
        log.info("engine %d: model resident in %.1f s", self._process.pid, loaded.seconds)
        self._resident = True
        return self.client

    async def stop(self) -> None:
        """Ask, wait, kill. An engine that is still loading its weights does not listen and has nothing to lose.

        Afterwards the process is reaped and its memory returned.
        """
        listens, self._resident = self._resident, False
        self.client.close(EngineFailed("The engine was stopped."))
        # There is no process if the start was cancelled while it was created.
        if self._tasks:
            if listens:
                self.client.stop()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STOP_S):
                        await self._process.wait()
            self._kill()
            await self._process.wait()
        if self._logging is not None:
            await asyncio.wait({self._logging}, timeout=_LAST_WORDS_S)
        self._release()

    async def _watch_exit(self) -> None:
        code = await self._process.wait()
        # That says more than the status does.
        if code in (0, LOST) and await self.client.hears_why(_LAST_WORDS_S):
            return
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        self._die(EngineFailed(f"The engine process {how}."))

    async def _hear_last_words(self) -> None:
        self._die(await asyncio.shield(self.client.last_words))

    async def _watch_hang(self) -> None:
        tick = min(1.0, self._limits.hang_timeout_s / 4)
        awake = 0.0
        while True:
            await asyncio.sleep(tick)
            # A tick, however long it took: what it took beyond that this process was not there to hear anything.
            awake += tick
            self.client.listened(tick)
            if not self._resident and awake > self._limits.load_timeout_s:
                self._die(EngineFailed(f"The model did not load within {self._limits.load_timeout_s:g} s."))
                return
            if self.client.silence_s > self._limits.hang_timeout_s:
                silence = f"{self._limits.hang_timeout_s:g} s"
                self._die(EngineFailed(f"The engine made no progress for {silence} and was ended."))
                return

    def _die(self, error: ConfigiError) -> None:
        """End what waits for the process with `error`, and the process if it still runs."""
        if self.client.closed is not None:
            # It was asked to end: nothing for a watcher to report.
            return
        log.error("engine %d: %s", self._process.pid, error.message)
        resident = self._resident
        self._kill()
        self.client.close(error)
        self._release()
        if resident:
            self._on_exit(self, error)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _release(self) -> None:
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._socket.close()
        self._folder.remove()

    async def _log_stderr(self) -> None:
        if (stderr := self._process.stderr) is not None:
            while not stderr.at_eof():
                # asyncio raises it for a line of more than 64 KiB; left unread, a full pipe would stop the engine.
                with contextlib.suppress(ValueError):
                    if line := await stderr.readline():
                        log.warning("engine %d: %s", self._process.pid, line.decode(errors="replace").rstrip())


def _environment(own: EngineSettings) -> dict[str, str]:
    chip = defaults_here()
    ops, mb = own.command_buffer_ops or chip.command_buffer_ops, own.command_buffer_mb or chip.command_buffer_mb
    return metal_environment(ops, mb, os.environ)


def _load_command(settings: Settings, folder: Path, memory_limit: int) -> Load:
    return Load(
        model_dir=str(folder),
        max_concurrent=settings.engine.max_concurrent,
        prefill_step_tokens=settings.engine.prefill_step_tokens,
        decode_stall_target_s=settings.engine.decode_stall_target_ms / 1000,
        memory_limit=memory_limit,
        cache_limit=int(settings.cache.memory_limit),
        disk_limit=int(settings.cache.disk_limit),
        disk_hourly_limit=int(settings.cache.disk_hourly_limit),
        disk_dir=str(settings.storage.cache_dir / "prefixes"),
    )
