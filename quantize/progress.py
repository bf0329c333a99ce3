"""How a build reports its progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.progress import (
    BarColumn,
    DownloadColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import (
    Progress as Bar,
)

from quantize.console import DescriptionColumn, DoorConsole
from quantize.pace import Pace, pace_text
from quantize.worker import RateLimit

_LINES_INTERVAL_S = 10
# What a bar's rate and time left are taken from: a step of a calibration may take minutes.
SPEED_OF_LAST_S = 300


class Progress(Protocol):
    """Called from any thread. `phase`: waiting, fetching, calibrating, building or checking; `done`, `total`: bytes."""

    def __call__(self, phase: str, done: int, total: int | None, text: str) -> None: ...


def silent(phase: str, done: int, total: int | None, text: str) -> None:
    pass


@contextlib.contextmanager
def on_terminal(console: DoorConsole, clock: Callable[[], float] = time.monotonic) -> Iterator[Progress]:
    """A bar with rate and time left; a line every few seconds when the output is not a terminal."""
    if not console.is_terminal:
        yield _PlainLines(console, clock)
        return
    columns = (
        DescriptionColumn(),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True, speed_estimate_period=SPEED_OF_LAST_S) as bar:
        tasks: dict[str, object] = {}

        def show(phase: str, done: int, total: int | None, text: str) -> None:
            # Shards are fetched while others are used: one bar for both.
            phase = "building" if phase == "fetching" else phase
            if phase not in tasks:
                for task in bar.task_ids:
                    bar.update(task, visible=False)
                tasks[phase] = bar.add_task(text, total=total)
            bar.update(tasks[phase], description=text, completed=done, total=total)  # type: ignore[arg-type]

        yield show


class _PlainLines:
    def __init__(self, console: DoorConsole, clock: Callable[[], float]) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._rate = RateLimit(_LINES_INTERVAL_S, clock)
        self._pace = Pace(clock)

    def __call__(self, phase: str, done: int, total: int | None, text: str) -> None:
        with self._lock:
            rate = self._pace.rate(done)
            if self._rate.allows(phase):
                percentage = f" {done / total:.0%}" if total else ""
                left = (total - done) / rate if total and rate else None
                self._console.print(f"{phase}: {text}{percentage}{pace_text(rate, left)}", soft_wrap=True)


class BuildProgress:
    """Progress of a build that can also report that it waits for a shard of the source."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last: tuple[int, int | None] = (0, None)

    def __call__(self, phase: str, done: int, total: int | None, text: str) -> None:
        self._last = done, total
        self._progress(phase, done, total, text)

    def waiting_for(self, shard: str, arrived: int, size: int) -> None:
        self._progress("fetching", *self._last, f"waiting for {shard}, {arrived / 1e9:.1f} of {size / 1e9:.1f} GB")
