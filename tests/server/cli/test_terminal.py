"""What the terminal says while a model comes up."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from rich.console import Console

from server.cli.terminal import show_progress
from server.models.catalog import Catalog
from server.models.notifier import Notifier
from server.models.status import ModelStatus, State
from server.settings.types import ModelSettings, Settings

ENTRY = ModelSettings(id="tiny", acquire="fetch", fetch="org/tiny")


class OneModel:
    """As much of a residency as the terminal looks at."""

    def __init__(self) -> None:
        self.changes = Notifier()
        self._status = ModelStatus(ENTRY.id, "absent", "not loaded yet")

    def status(self, entry: ModelSettings) -> ModelStatus:
        return self._status

    async def become(self, state: State, text: str, done: int = 0, total: int | None = None) -> None:
        """And let whoever waits for a change have seen it."""
        self._status = ModelStatus(ENTRY.id, state, text, done, total)
        self.changes.notify()
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.mark.parametrize(("line_every_s", "lines"), [(0, ["0", "1", "2", "3"]), (3600, ["0"])])
def test_without_a_terminal_a_long_transfer_is_a_line_from_time_to_time(line_every_s: float, lines: list[str]) -> None:
    shown = io.StringIO()

    async def transfer() -> None:
        model: Any = OneModel()
        console = Console(file=shown, width=40)
        telling = asyncio.create_task(show_progress(console, model, Catalog(Settings(models=[ENTRY])), line_every_s))
        for done in range(4):
            await model.become("fetching", f"{done} of 4 GB, in one line however long it may be", done, 4)
        await model.become("failed", "The Hub has no such repository, or it needs a token.")
        telling.cancel()

    asyncio.run(transfer())
    *progress, last = shown.getvalue().splitlines()
    assert [line.split()[1] for line in progress] == lines
    assert last == "tiny: The Hub has no such repository, or it needs a token."
