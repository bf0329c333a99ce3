"""What was read of one model's files: the text process that has read them, while it is needed, and what they said.

HTTP process, on the event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from server.allocator import give_back
from server.chat.description import Description
from server.text.client import TextProcess

# It is kept so long without the model's weights: others may have written the files.
_IDLE_S = 5.0

# Name, size and time of the last change of every file.
Stamp = tuple[tuple[str, int, int], ...]


def stamp_of(folder: Path) -> Stamp:
    """Of files of which some are gone, or all, another one."""
    try:
        with os.scandir(folder) as files:
            stats = sorted((file.name, file.stat()) for file in files)
    except OSError:
        return ()
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


class OpenedFiles:
    """`text` and `folder` are set together; without `text`, the folder is where the files last were.

    `needed`: whether somebody will soon ask for `text`.
    """

    def __init__(self, needed: Callable[[], bool]) -> None:
        self.text: TextProcess | None = None
        self.folder: Path | None = None
        self._needed = needed
        self._description: Description | None = None
        self._stamp: Stamp = ()
        self._timer: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def set(self, folder: Path, text: TextProcess, stamp: Stamp) -> None:
        """`stamp`: of the folder before `text` read it."""
        self.folder, self.text, self._stamp = folder, text, stamp
        self._description = text.vocabulary.description
        text.on_unavailable = self._forget_if_of
        self.await_use()

    async def description(self) -> Description | None:
        """None where the files were not read, or others have written them since and they are not in use."""
        if self.text is not None or self.folder is None:
            return self._description
        return self._description if await asyncio.to_thread(stamp_of, self.folder) == self._stamp else None

    def await_use(self) -> None:
        """From now on it is kept for a while without being needed."""
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(_IDLE_S, self._end_if_idle)

    def forget(self) -> None:
        """They are to be looked for anew."""
        self.folder = self._description = None
        self._end_text()

    async def close(self) -> None:
        self._end_text()
        await asyncio.gather(*self._closing)

    def _forget_if_of(self, text: TextProcess) -> None:
        """A process that was to start again did not find what it once had read; one that was replaced says nothing of
        the files that are open now."""
        if text is self.text:
            self.forget()

    def _end_if_idle(self) -> None:
        if self.text is None:
            return
        if self._needed() or self.text.asking:
            self.await_use()
        else:
            self._end_text()

    def _end_text(self) -> None:
        self._stop_timer()
        text, self.text = self.text, None
        if text is not None:
            closing = asyncio.create_task(_ended(text))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _ended(text: TextProcess) -> None:
    """Its vocabulary may be most of what this process holds."""
    await text.close()
    del text
    await asyncio.to_thread(give_back)
