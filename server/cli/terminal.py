"""What the terminal shows while a model comes up: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time

from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TimeRemainingColumn, TransferSpeedColumn

from quantize.console import DescriptionColumn, DoorConsole
from quantize.progress import SPEED_OF_LAST_S
from server.models.catalog import Catalog
from server.models.residency import Residency
from server.models.status import ModelStatus

_LONG = ("fetching", "building", "loading")


class ServerConsole(DoorConsole):
    """A server goes on when nobody reads its lines any more: whoever started it may have gone."""

    def on_broken_pipe(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


async def show_progress(console: DoorConsole, residency: Residency, catalog: Catalog, line_every_s: float = 15) -> None:
    """Until cancelled: one bar for whatever model is being fetched, built or loaded; without a terminal, a line for
    every state and for every `line_every_s` seconds of a long one."""
    while True:
        status = next((s for s in map(residency.status, catalog.entries) if s.state in _LONG), None)
        if status is None:
            await residency.changes.wait()
        else:
            await _show(console, residency, catalog, status, line_every_s)


async def _show(
    console: DoorConsole, residency: Residency, catalog: Catalog, status: ModelStatus, line_every_s: float
) -> None:
    """One model from the start of something long to its end."""
    entry = catalog.resolve(status.id)
    columns = (
        SpinnerColumn(),
        DescriptionColumn(),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=SPEED_OF_LAST_S,
    )
    with bar as progress:
        task = progress.add_task(status.text, total=None)
        said, said_at = "", 0.0
        while status.state in _LONG:
            progress.update(task, description=f"{status.id}: {status.text}", completed=status.done, total=status.total)
            news = status.state != said or time.monotonic() - said_at >= line_every_s
            if news and not console.is_terminal:
                console.print(f"{status.id}: {status.line}", soft_wrap=True)
                said, said_at = status.state, time.monotonic()
            await residency.changes.wait()
            status = residency.status(entry)
    console.print(f"{status.id}: {status.text}", soft_wrap=True)
