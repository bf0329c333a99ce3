"""So many bytes in any hour: a bucket that is full at first and refills evenly. Runs in the engine process.

A file remembers it: engines end and start many times an hour where models take turns, and servers that share a folder
wear the same disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

_HOUR_S = 3600


class Allowance:
    """`memory`: the file; None where nobody else is to know. `clock` tells the time of day, in seconds."""

    def __init__(self, per_hour: int, clock: Callable[[], float] | None = None, memory: Path | None = None) -> None:
        self._per_hour = per_hour
        self._clock = clock or time.time
        self._memory = memory
        self._left = float(per_hour)
        self._at = self._clock()

    def take(self, count: int) -> bool:
        """Whether `count` bytes may be written now; then they count as written."""
        self._recall()
        now = self._clock()
        self._left = min(self._per_hour, self._left + self._per_hour * max(0.0, now - self._at) / _HOUR_S)
        self._at = now
        if count > self._left:
            return False
        self._left -= count
        self._remember()
        return True

    def _recall(self) -> None:
        """What another process has left. A file that is gone or damaged, or a link, says nothing."""
        if self._memory is None:
            return
        with contextlib.suppress(OSError, ValueError, TypeError):
            with os.fdopen(os.open(self._memory, os.O_RDONLY | os.O_NOFOLLOW)) as file:
                left, at = map(float, json.loads(file.read(100)))
            self._left, self._at = left, at

    def _remember(self) -> None:
        if self._memory is None:
            return
        partial = self._memory.with_name(f"{uuid.uuid4().hex}.partial")
        with contextlib.suppress(OSError):
            with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                json.dump([self._left, self._at], file)
            partial.replace(self._memory)
            return
        with contextlib.suppress(OSError):
            partial.unlink()
