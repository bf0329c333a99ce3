"""Where a model's files are, and how they are had when they are not there. HTTP process.

The transfer runs in a child process, which is killed with everything it started when nobody wants it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantize.hub_cache import cached_folder
from server.errors import ModelUnavailable
from server.settings import ModelSettings, StorageSettings

log = logging.getLogger("configi.acquire")

_EMBEDDED = "embedded:"
_LONGEST_LINE = 2**20


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the transfer is, in bytes; `text` is one line."""

    phase: Literal["fetching", "building"]
    done: int
    total: int | None
    text: str


class Acquirer:
    """`python` is the command that starts a worker's interpreter."""

    def __init__(self, storage: StorageSettings, python: Sequence[str] = (sys.executable, "-P")) -> None:
        self._storage = storage
        self._python = python

    def locate(self, model: ModelSettings) -> Path | None:
        """The folder of `model` if it is complete on this machine. No network; reads the disk."""
        if model.acquire == "local":
            return model.path if model.path is not None and (model.path / "config.json").is_file() else None
        if model.acquire == "build" or model.fetch is None:
            return None
        if model.fetch.startswith(_EMBEDDED):
            from server.models.embedded import embedded_folder

            return embedded_folder(model.fetch.removeprefix(_EMBEDDED), self._storage.cache_dir)
        repo, _, revision = model.fetch.partition("@")
        return cached_folder(repo, revision or None)

    async def acquire(self, model: ModelSettings, progress: Callable[[Progress], None]) -> Path:
        """Fetch `model`. Cancelling ends the transfer; what is whole by then is kept.

        Raises:
            ModelUnavailable: it cannot be had; the message says why.
        """
        if model.acquire == "local":
            log.error("model %s: no config.json in %s", model.id, model.path)
            raise ModelUnavailable(f"The folder of the model '{model.id}' is missing or holds no config.json.")
        if model.acquire == "build" or model.fetch is None:
            raise _needs_building(model)
        if not self._storage.allow_download:
            message = f"The model '{model.id}' is not on this machine, and storage.allow_download is false."
            raise ModelUnavailable(message)
        try:
            return await self._run(self._command(model.fetch), progress)
        except ModelUnavailable as error:
            if model.acquire == "fetch-or-build" and model.build_from is not None:
                raise _needs_building(model, error.message) from error
            raise

    def _command(self, fetch: str) -> list[str]:
        if fetch.startswith(_EMBEDDED):
            name = fetch.removeprefix(_EMBEDDED)
            arguments = ["server.models.embedded", name, str(self._storage.cache_dir)]
        else:
            arguments = ["server.models.fetch", fetch, "--timeout", str(self._storage.hub_timeout_s)]
        return [*self._python, "-m", *arguments, "--watch-stdin"]

    async def _run(self, command: Sequence[str], progress: Callable[[Progress], None]) -> Path:
        pipe = asyncio.subprocess.PIPE
        # A session of its own: Ctrl-C on the terminal is ours to handle, and killpg reaches all it started.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, limit=_LONGEST_LINE, start_new_session=True
        )
        errors = asyncio.create_task(_log_lines(process.stderr))
        try:
            last = await _read_report(process.stdout, progress)
            await process.wait()
            await errors
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            errors.cancel()
        if "folder" in last:
            return Path(last["folder"])
        if "error" in last:
            raise ModelUnavailable(last["error"]["message"])
        log.error("the worker ended with code %s and no last line", process.returncode)
        raise ModelUnavailable("Fetching the model ended unexpectedly; the server's log has the reason.")


def _needs_building(model: ModelSettings, reason: str | None = None) -> ModelUnavailable:
    """The seam for the builder: it will build `model.build_from` here instead."""
    text = f"The model '{model.id}' would have to be built from its source, which this version cannot do."
    return ModelUnavailable(f"{reason} {text}" if reason else text)


async def _read_report(stdout: asyncio.StreamReader | None, progress: Callable[[Progress], None]) -> dict[str, Any]:
    """Pass progress on; the line that is none is the last."""
    last: dict[str, Any] = {}
    async for raw in _lines(stdout):
        try:
            line = json.loads(raw)
        except ValueError:
            log.warning("not a report line: %r", raw[:200])
            continue
        if "phase" in line:
            progress(Progress(line["phase"], line["done"], line["total"], line["text"]))
        else:
            last = line
    return last


async def _log_lines(stderr: asyncio.StreamReader | None) -> None:
    async for raw in _lines(stderr):
        log.warning("%s", raw.decode(errors="replace").rstrip())


async def _lines(pipe: asyncio.StreamReader | None) -> AsyncIterator[bytes]:
    """None is asyncio's type for a pipe that was not asked for."""
    if pipe is not None:
        async for line in pipe:
            yield line
