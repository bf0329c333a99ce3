"""Children whose work others price: less urgent than we are, ended with all they started, asked one thing at a time."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections import deque
from collections.abc import Awaitable, Callable

import psutil
import pytest

from server.child.asked import AskedChild, Bounds, ChildEnded
from server.child.process import PATIENT, kill, log_lines, start
from tests.support.streams import until

# Answers each frame with itself; dies of an empty one.
ECHO = """
import sys
from server.child.frames import read_frame, write_frame
while raw := read_frame(sys.stdin.buffer):
    write_frame(sys.stdout.buffer, raw)
"""


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main()

    asyncio.run(bounded())


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_child_yields_to_its_parent_and_is_not_reached_by_its_terminal() -> None:
    async def main() -> None:
        child = await start(python("input()"), PATIENT)
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + PATIENT)
        # Linux compares whole sessions: only within ours does niceness count.
        assert os.getsid(child.pid) == os.getsid(0)
        assert os.getpgid(child.pid) == child.pid
        await kill(child)

    run(main)


def test_what_a_child_has_started_ends_with_it() -> None:
    async def main() -> None:
        code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()']); print('up'); input()"
        child = await start([sys.executable, "-u", "-c", code], PATIENT)
        assert child.stdout is not None
        assert await child.stdout.readline() == b"up\n"
        [grandchild] = psutil.Process(child.pid).children()
        await kill(child)
        await asyncio.to_thread(until, lambda: not grandchild.is_running() or grandchild.status() == "zombie")

    run(main)


def test_a_line_without_end_does_not_stop_what_is_logged() -> None:
    async def main() -> None:
        child = await start(python("import sys; print('a' * 10**6 + '\\nlast', file=sys.stderr)"), PATIENT)
        said: list[str] = []
        await log_lines(child.stderr, said.append)
        assert said[-1] == "last"
        await kill(child)

    run(main)


def test_pieces_are_one_question_and_are_let_go() -> None:
    async def main() -> None:
        bounds = Bounds(20, 2**32)
        child = AskedChild(python(ECHO), PATIENT, "echo", logging.getLogger())
        await child.start()
        pieces = deque([b"a" * 10**6, b"b", b"c" * 10**6])
        assert await child.ask(pieces, bounds=bounds) == b"a" * 10**6 + b"b" + b"c" * 10**6
        assert not pieces
        with pytest.raises(ChildEnded):
            await child.ask(deque([b""]), bounds=bounds)
        assert not child.running

    run(main)
