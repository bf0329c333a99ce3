"""Files of prefixes read and written in threads, so that no stream waits for a disk. Runs in the engine process.

One thread reads and one writes. Neither computes: MLX evaluates in the engine's own thread only, so what is written
has been evaluated, and what was read and checked is loaded by the one who takes it, little by little.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from server.engine import kv
from server.engine.compat import Layers
from server.engine.device.failures import explain
from server.engine.prefixes.allowance import Allowance
from server.engine.prefixes.disk_tier import DiskTier, StoredSegment
from server.engine.prefixes.shelf import CachedSegment

log = logging.getLogger("configi.engine")

# What waits to be written stays in memory so long, beside the limit of prefixes.
_MOST_WAITING_BYTES = 10**9
# The engine's own thread spends so long at a time on what was read; a stream waits for it.
_LOADING_S = 0.03


@dataclass(eq=False, slots=True)
class Restore:
    """Segments that come back from disk, the first ones first. `worth`: seconds of prefill saved for one of reading."""

    segments: deque[CachedSegment] = field(default_factory=deque)
    worth: float = 0.0

    @property
    def done(self) -> bool:
        return not self.segments


class PrefixWriter:
    """`submit` accepts what fits into the hour and into memory."""

    def __init__(self, disk: DiskTier) -> None:
        self._disk = disk
        self._allowance = Allowance(disk.hourly_limit, memory=disk.hour)
        self._thread = ThreadPoolExecutor(1, "prefix-writer")
        self._under_way: deque[tuple[_Writing, Future[StoredSegment | None]]] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._under_way)

    @property
    def leaving(self) -> int:
        """Bytes of memory that only what is to be written holds."""
        return sum(writing.leaving for writing, _ in self._under_way)

    def submit(self, segment: CachedSegment, tokens: list[int], start: int, layers: Layers) -> bool:
        """`layers`, evaluated, hold `tokens` from `start` on."""
        nbytes = kv.nbytes(layers)
        waiting = sum(kv.nbytes(writing.layers) for writing, _ in self._under_way)
        if not self._disk.enabled or waiting + nbytes > _MOST_WAITING_BYTES or not self._allowance.take(nbytes):
            return False
        writing = _Writing(segment, layers)
        self._under_way.append((writing, self._thread.submit(self._write, writing, tokens, start)))
        return True

    def _write(self, writing: _Writing, tokens: list[int], start: int) -> StoredSegment | None:
        segment = writing.segment
        try:
            return self._disk.write(tokens, start, segment.kind, writing.layers, segment.salt)
        finally:
            writing.layers = []

    def finished(self) -> Iterator[tuple[CachedSegment, StoredSegment | None]]:
        while self._under_way and self._under_way[0][1].done():
            writing, written = self._under_way.popleft()
            yield writing.segment, written.result()

    def wait(self, seconds: float) -> None:
        """For the first of what is under way."""
        if self._under_way:
            wait([self._under_way[0][1]], seconds)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


@dataclass(eq=False, slots=True)
class _Writing:
    """`layers` of `segment` as they were, until they are written."""

    segment: CachedSegment
    layers: Layers

    @property
    def leaving(self) -> int:
        """Bytes that the segment does not hold as well: it may have let go of some layers, or have others by now."""
        held = set(map(id, self.segment.layers or []))
        return kv.nbytes([layer for layer in self.layers if id(layer) not in held])


@dataclass(eq=False, slots=True)
class _Reading:
    """`layers` once the file is checked; `evaluated` of them are in memory."""

    segment: CachedSegment
    stored: StoredSegment
    checked: Future[bool]
    begun: float
    layers: Layers | None = None
    evaluated: int = 0


class PrefixReader:
    """Reads for whom it is worth most, one file after the other. Raises what only a device that has failed raises."""

    def __init__(self, disk: DiskTier) -> None:
        self._disk = disk
        self._thread = ThreadPoolExecutor(1, "prefix-reader")
        self._restores: list[Restore] = []
        self._under_way: _Reading | None = None

    def submit(self, restore: Restore) -> None:
        self._restores.append(restore)
        self.go_on()

    def finished(self) -> tuple[CachedSegment, Layers | None] | None:
        """A segment that was read, None in place of layers where its file is gone or damaged. What the thread has
        checked is brought into MLX's arrays here, for a short while at each call."""
        reading = self._under_way
        if reading is None or not reading.checked.done():
            return None
        if reading.segment.stored is not reading.stored:
            # Forgotten meanwhile, and its file with it.
            reading.layers = None
        elif reading.layers is None:
            reading.layers = self._open(reading)
        try:
            if reading.layers is not None and not _evaluate(reading):
                return None
        except Exception as error:
            if explain(error).lost:
                raise
            # At the next look MLX would take what it could not read for read.
            log.warning("a stored prefix cannot be read and is forgotten: %s", error)
            reading.layers = None
        self._under_way = None
        for restore in self._restores:
            if reading.segment in restore.segments:
                restore.segments.remove(reading.segment)
        if reading.layers is not None:
            self._disk.record_read(reading.stored, time.monotonic() - reading.begun)
        return reading.segment, reading.layers

    def _open(self, reading: _Reading) -> Layers | None:
        if reading.checked.result():
            return self._disk.open(reading.stored)
        log.warning("a stored prefix is gone or damaged and is forgotten")
        return None

    def go_on(self) -> None:
        """With the next file, when `finished` has given one."""
        self._restores = [restore for restore in self._restores if not restore.done]
        if self._under_way is not None or not self._restores:
            return
        best = max(self._restores, key=lambda restore: restore.worth)
        segment = best.segments[0]
        if segment.stored is None:
            # Its file made room for another meanwhile.
            best.segments.clear()
            self.go_on()
            return
        checked = self._thread.submit(self._disk.check, segment.stored)
        self._under_way = _Reading(segment, segment.stored, checked, time.monotonic())

    def wait(self, seconds: float) -> None:
        if self._under_way is not None:
            wait([self._under_way.checked], seconds)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _evaluate(reading: _Reading) -> bool:
    """Some of the layers; whether that was the last of them."""
    assert reading.layers is not None
    deadline = time.monotonic() + _LOADING_S
    while reading.evaluated < len(reading.layers) and time.monotonic() < deadline:
        kv.evaluate(reading.layers[reading.evaluated : reading.evaluated + 1])
        reading.evaluated += 1
    return reading.evaluated == len(reading.layers)
