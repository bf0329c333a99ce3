"""Runs a worker process: follows its report, and kills it and all that it started when nobody needs it. HTTP process.

`quantize/worker.py` is the worker's side and describes the report.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.errors import ModelUnavailable

log = logging.getLogger("configi.worker")

_LONGEST_LINE = 2**20


@dataclass(frozen=True, slots=True)
class ReportLine:
    """How far a worker has come, in bytes; `text` is one line."""

    phase: str
    done: int
    total: int | None
    text: str


class WorkerFailed(ModelUnavailable):
    """In the worker's own words. `transient`: another try may work later."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


async def run(command: Sequence[str], on_line: Callable[[ReportLine], None]) -> Path:
    """The folder that the worker made or checked; `on_line` gets its progress. Cancelling ends it.

    Raises:
        WorkerFailed: with the reason that the worker gave, or because it ended without one.
    """
    pipe = asyncio.subprocess.PIPE
    # A session of its own: Ctrl-C on the terminal is ours to handle, and killpg reaches all it started.
    process = await asyncio.create_subprocess_exec(
        *command, "--watch-stdin", stdin=pipe, stdout=pipe, stderr=pipe, limit=_LONGEST_LINE, start_new_session=True
    )
    errors = asyncio.create_task(_log_lines(process.stderr))
    try:
        last = await _read_report(process.stdout, on_line)
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
        raise WorkerFailed(last["error"]["message"], transient=last["error"]["retryable"])
    log.error("the worker ended with code %s and no last line", process.returncode)
    raise WorkerFailed("Preparing the model ended unexpectedly; the server's log has the reason.", transient=True)


async def _read_report(stdout: asyncio.StreamReader | None, on_line: Callable[[ReportLine], None]) -> dict[str, Any]:
    """Pass progress on, and return the line that is not progress: the last."""
    last: dict[str, Any] = {}
    async for raw in _lines(stdout):
        try:
            line = json.loads(raw)
        except ValueError:
            log.warning("not a report line: %r", raw[:200])
            continue
        if "phase" in line:
            on_line(ReportLine(line["phase"], line["done"], line["total"], line["text"]))
        else:
            last = line
    return last


async def _log_lines(stderr: asyncio.StreamReader | None) -> None:
    async for raw in _lines(stderr):
        log.warning("%s", raw.decode(errors="replace").rstrip())


async def _lines(pipe: asyncio.StreamReader | None) -> AsyncIterator[bytes]:
    """`pipe` is None only in asyncio's types: all three pipes are requested."""
    if pipe is not None:
        async for line in pipe:
            yield line
