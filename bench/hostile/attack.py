"""The hostile clients: requests as bytes over sockets, some that leave, all of them done by a deadline."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_PIECE = 2**18


@dataclass(frozen=True, slots=True)
class Shot:
    """One request. `leave_s`: the client leaves so long after it has sent all. `trickle_s`: between pieces of 1 KiB."""

    path: str
    body: bytes
    leave_s: float | None = None
    trickle_s: float = 0.0
    # Sent less than announced, and then nothing: the body stays in flight.
    withheld: int = 0


def chat(model: str, content: str, **more: object) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 2} | more
    return json.dumps(body, ensure_ascii=False).encode()


def fire(port: int, shots: Iterable[Shot], at_once: int, limit_s: float) -> Counter[str]:
    """Send all `shots`, `at_once` at a time, and count what came back; no more are sent after `limit_s`.

    A status, "left" (as planned), "late" (nothing within `limit_s`), "lost" (the connection broke), "unsent".
    """
    deadline = time.monotonic() + limit_s
    seen: Counter[str] = Counter()
    waiting = _Shared(iter(shots))

    def one() -> None:
        come_last()
        while (shot := waiting.next()) is not None:
            seen["unsent" if time.monotonic() >= deadline else _outcome(port, shot, deadline)] += 1

    threads = [threading.Thread(target=one) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def come_last() -> None:
    """This thread takes no processor that the server wants, as a client on another machine would not. Linux only, where
    a thread has a priority of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)


class _Shared:
    """An iterator that threads share."""

    def __init__(self, shots: Iterator[Shot]) -> None:
        self._shots = shots
        self._lock = threading.Lock()

    def next(self) -> Shot | None:
        with self._lock:
            return next(self._shots, None)


def _outcome(port: int, shot: Shot, deadline: float) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_left(deadline)) as sock:
            _send(sock, shot, deadline)
            until = deadline if shot.leave_s is None else min(deadline, time.monotonic() + shot.leave_s)
            sock.settimeout(_left(until))
            start = sock.recv(65536)
            return start[9:12].decode() if start.startswith(b"HTTP/") else "lost"
    except TimeoutError:
        return "left" if shot.leave_s is not None and time.monotonic() < deadline else "late"
    except OSError:
        return "lost"


def _send(sock: socket.socket, shot: Shot, deadline: float) -> None:
    """What the server answers before it has read all is still there to be read."""
    head = f"POST {shot.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(shot.body)}\r\n"
    try:
        sock.sendall(head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n")
        step = 1024 if shot.trickle_s else _PIECE
        for start in range(0, len(shot.body) - shot.withheld, step):
            sock.sendall(shot.body[start : min(start + step, len(shot.body) - shot.withheld)])
            if shot.trickle_s:
                time.sleep(min(shot.trickle_s, _left(deadline)))
    except (BrokenPipeError, ConnectionResetError):
        return


def _left(deadline: float) -> float:
    return max(0.01, deadline - time.monotonic())
