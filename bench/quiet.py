"""Whether the machine does anything else: a figure counts only when it did not, before and after."""

from __future__ import annotations

import psutil

# Of all cores together, while nothing of the benchmark's runs. A desktop at rest takes a few per cent.
BUSY = 0.15
_SECONDS = 3.0


def disturbance(seconds: float = _SECONDS) -> str:
    """What the machine is busy with, as one clause; empty when it is quiet."""
    share = psutil.cpu_percent(interval=seconds) / 100
    return f"{100 * share:.0f} % of the processors were taken by others" if share > BUSY else ""
