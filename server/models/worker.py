"""Runs a worker process: follows its report, and kills it and all that it started when nobody needs it. HTTP process.

`quantize/worker.py` is the worker's side and describes the report.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.child.process import PATIENT, kill, log_lines, start
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


async def run(command: Sequence[str], on_line: Callable[[ReportLine], None], niceness: int = PATIENT) -> Path:
    """The folder that the worker made or checked; `on_line` gets its progress. Cancelling ends it.

    Raises:
        WorkerFailed: with the reason that the worker gave, or because it ended without one.
    """
    process = await start([*command, "--watch-stdin"], niceness, _LONGEST_LINE)
    errors = asyncio.create_task(log_lines(process.stderr, lambda line: log.warning("%s", line)))
    try:
        last = await _read_report(process.stdout, on_line)
        await process.wait()
        await errors
    finally:
        await kill(process)
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
    # None only in asyncio's types.
    assert stdout is not None
    async for raw in stdout:
        line: Any = None
        with contextlib.suppress(ValueError):
            line = json.loads(raw)
        if not isinstance(line, dict):
            log.warning("not a report line: %r", raw[:200])
        elif "phase" in line:
            on_line(ReportLine(line["phase"], line["done"], line["total"], line["text"]))
        else:
            last = line
    return last
