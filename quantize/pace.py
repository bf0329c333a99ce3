"""How fast something long goes, by what was done within the last seconds. Pure but for the clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

# Long enough that a burst is no promise, short enough that a line that got slower shows.
_WINDOW_S = 20.0
_LEAST_S = 1.0


class Pace:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def restart(self) -> None:
        self._seen.clear()

    def rate(self, done: int) -> float | None:
        """Per second, now that `done` are done; None while it is too early to tell. Less than before starts anew."""
        now = self._clock()
        if self._seen and done < self._seen[-1][1]:
            self.restart()
        self._seen.append((now, done))
        # The last one from before the window stays: a step of a calibration may take longer than that.
        while len(self._seen) > 1 and now - self._seen[1][0] > _WINDOW_S:
            self._seen.popleft()
        began, had = self._seen[0]
        return (done - had) / (now - began) if now - began >= _LEAST_S else None


def pace_text(rate: float | None, seconds_left: float | None) -> str:
    """`, 3.1 MB/s, 12 min left`; nothing of what is not known. `rate`: bytes a second."""
    said = f", {rate / 1e6:.1f} MB/s" if rate else ""
    if seconds_left is None:
        return said
    if seconds_left < 100:
        return f"{said}, {seconds_left:.0f} s left"
    minutes = seconds_left / 60
    return f"{said}, {minutes:.0f} min left" if minutes < 100 else f"{said}, {minutes / 60:.0f} h left"
