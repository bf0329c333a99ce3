"""So many bytes in any hour: a bucket that is full at first and refills evenly. Pure; engine process."""

from __future__ import annotations

import time
from collections.abc import Callable

_HOUR_S = 3600


class Allowance:
    def __init__(self, per_hour: int, clock: Callable[[], float] | None = None) -> None:
        self._per_hour = per_hour
        self._clock = clock or time.monotonic
        self._left = float(per_hour)
        self._at = self._clock()

    def take(self, count: int) -> bool:
        """Whether `count` bytes may be written now; then they count as written."""
        now = self._clock()
        self._left = min(self._per_hour, self._left + self._per_hour * (now - self._at) / _HOUR_S)
        self._at = now
        if count > self._left:
            return False
        self._left -= count
        return True
