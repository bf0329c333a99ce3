"""What an innocent client sees: `python -m bench.hostile.meters stream|health PORT LOG`, each a process of its own.

The side that measures must not be what stalls, so a meter does nothing but wait for bytes and write down when they
came: a line "SECONDS" for each beat (text of the stream, a good answer of /health), "SECONDS WHY" when a stream ended.
The clock is CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TextIO

from bench.setup import ROOT

PERIOD_S = 0.02
_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
_CHAT = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": -1, "stream": True}).encode()
_ENDS = ((b'"error"', "an error event"), (b"[DONE]", "it was done"))


@dataclass(frozen=True, slots=True)
class Seen:
    """What one meter wrote. `ended`: why a stream ended, "" while it runs."""

    beats: tuple[float, ...]
    ended: str = ""

    def longest(self, start: float, end: float) -> float:
        """The longest time without a beat between `start` and `end`, seconds, whether or not one came after it."""
        inside = [beat for beat in self.beats if start < beat < end]
        edges = [start, *inside, end]
        return max(after - before for before, after in itertools.pairwise(edges))

    def usual(self, start: float, end: float) -> float:
        """The median time between beats; what is less than a millisecond is one piece of news."""
        inside = [beat for beat in self.beats if start < beat < end]
        return median([b - a for a, b in itertools.pairwise(inside)] or [0.0])


def read(log: Path) -> Seen:
    """The last line may be half written."""
    beats: list[float] = []
    for line in log.read_text().splitlines(keepends=True):
        at, _, why = line.strip().partition(" ")
        if why:
            return Seen(tuple(beats), why)
        if line.endswith("\n"):
            beats.append(float(at))
    return Seen(tuple(beats))


class Meter:
    """A meter that runs, until `stop`."""

    def __init__(self, kind: str, port: int, log: Path) -> None:
        log.unlink(missing_ok=True)
        log.touch()
        self._log = log
        command = [sys.executable, "-m", __spec__.name, kind, str(port), str(log)]
        # It shares no session with those who send hostile requests either.
        self._process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    def seen(self) -> Seen:
        return read(self._log)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def stream(port: int, log: TextIO) -> None:
    """Beats of one endless answer."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(_CHAT)}\r\n"
        sock.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + _CHAT)
        piece = sock.recv(65536)
        if not piece.startswith(b"HTTP/1.1 200"):
            _write(log, f" status {piece[9:12].decode()}")
            return
        while piece := sock.recv(65536):
            if why := next((why for sign, why in _ENDS if sign in piece), ""):
                _write(log, f" {why}")
                return
            if b"data: " in piece:
                _write(log)
    _write(log, " the connection was closed")


def health(port: int, log: TextIO) -> None:
    """A beat for each answer of 200, asked every PERIOD_S over one connection while it lasts."""
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as sock:
                _ask(sock, log)
        except OSError:
            time.sleep(PERIOD_S)


def _ask(sock: socket.socket, log: TextIO) -> None:
    while True:
        asked = time.monotonic()
        sock.sendall(_HEALTH)
        answer = sock.recv(65536)
        while answer and b"}" not in answer:
            answer += sock.recv(65536)
        if not answer:
            return
        if answer.startswith(b"HTTP/1.1 200"):
            _write(log)
        time.sleep(max(0.0, asked + PERIOD_S - time.monotonic()))


def _write(log: TextIO, why: str = "") -> None:
    log.write(f"{time.monotonic():.6f}{why}\n")


def main(arguments: Sequence[str]) -> None:
    kind, port, path = arguments
    # Line by line: a log that waits in a buffer would be lost with the process.
    with Path(path).open("a", buffering=1) as log:
        try:
            (stream if kind == "stream" else health)(int(port), log)
        except OSError as error:
            _write(log, f" {type(error).__name__}")


if __name__ == "__main__":
    main(sys.argv[1:])
