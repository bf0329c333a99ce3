"""Samples of what a process holds over time, and whether they stay flat. Pure but for taking a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import psutil

FEWEST = 6


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one moment. `at`: seconds since the start; `rss`: resident bytes."""

    at: float
    rss: int
    files: int
    threads: int


@dataclass(frozen=True, slots=True)
class Growth:
    """What came on top after the warm-up, beside what is allowed."""

    what: str
    before: float
    after: float
    allowed: float

    @property
    def flat(self) -> bool:
        return self.after <= self.before + self.allowed


def sample(process: psutil.Process, at: float) -> Sample:
    """`process` now; sockets count as files."""
    with process.oneshot():
        return Sample(at, process.memory_info().rss, process.num_fds(), process.num_threads())


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """The last third against the middle one, by their medians; the first is the warm-up.

    Memory may differ by 5 % and 8 MiB: allocators keep what they freed. Files may not grow; threads by two, since a
    pool keeps idle ones for some seconds. Samples are to be taken when nothing is asked.

    Raises:
        ValueError: fewer than FEWEST samples say nothing.
    """
    if len(samples) < FEWEST:
        raise ValueError(f"{len(samples)} samples are too few to judge growth")
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]

    def growth(what: str, name: str, allowed: float, unit: float = 1.0) -> Growth:
        before, after = (median(getattr(s, name) / unit for s in part) for part in (middle, last))
        return Growth(what, before, after, allowed)

    memory = growth("memory, MiB", "rss", 8.0, 2**20)
    return [
        Growth(memory.what, memory.before, memory.after, memory.allowed + 0.05 * memory.before),
        growth("open files", "files", 0.0),
        growth("threads", "threads", 2.0),
    ]
