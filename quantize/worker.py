"""How a worker process reports to its parent: JSON lines on stdout; it exits when the parent does.

{"phase": "fetching", "done": 1200, "total": 9000, "text": "..."}     bytes; at most five a second
{"folder": "..."}                                                     the last line, and exit code 0
{"error": {"message": "...", "retryable": true}}                      the last line, and exit code 1

A text is cut: the name of a file on the Hub, which it may quote, may be longer than a line that is read.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, TextIO

from quantize.printable import LONGEST

_INTERVAL_S = 0.2


class RateLimit:
    """Allows a report at the start of each phase, and then one every `interval_s`."""

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._phase = ""
        self._last = 0.0

    def allows(self, phase: str) -> bool:
        now = self._clock()
        if phase == self._phase and now - self._last < self._interval_s:
            return False
        self._phase, self._last = phase, now
        return True


class JsonLines:
    """The worker's end of the pipe; thread-safe. A report that the rate limit held back is written if none follows."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._rate = RateLimit(_INTERVAL_S)
        self._held: dict[str, object] | None = None

    def __call__(self, phase: str, done: int, total: int | None, text: str) -> None:
        line: dict[str, object] = {"phase": phase, "done": done, "total": total, "text": text[:LONGEST]}
        with self._lock:
            if self._rate.allows(phase) or done == total:
                self._write(line)
                return
            if self._held is None:
                later = threading.Timer(_INTERVAL_S, self._write_held)
                later.daemon = True
                later.start()
            self._held = line

    def folder(self, folder: str) -> None:
        with self._lock:
            self._write({"folder": folder})

    def error(self, message: str, *, retryable: bool) -> None:
        with self._lock:
            self._write({"error": {"message": message[:LONGEST], "retryable": retryable}})

    def _write_held(self) -> None:
        with self._lock:
            if self._held is not None:
                self._write(self._held)

    def _write(self, line: dict[str, object]) -> None:
        self._held = None
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()


def exit_with_parent(stdin: BinaryIO) -> None:
    """Exit at once, with code 1, when the other end of `stdin` closes, which it does however the parent dies."""

    def wait() -> None:
        # Not the buffered read: its lock would be held when the interpreter ends.
        while os.read(stdin.fileno(), 4096):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="exit-with-parent", daemon=True).start()
