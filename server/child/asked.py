"""A child process that is asked one thing after the other, and ended when it does not answer. HTTP process."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence

from server.child.frames import LENGTH_BYTES, length
from server.child.process import kill, log_lines, start

# Of an answer, before it is asked for.
_READ_AHEAD = 2**20


class ChildEnded(Exception):
    """It ended before it had answered."""


class AskedChild:
    """Not running until `start`, nor after `end`. What it writes to stderr is logged as a warning of `name`."""

    def __init__(self, command: Sequence[str], niceness: int, name: str, log: logging.Logger) -> None:
        self._command = command
        self._niceness = niceness
        self._name = name
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        await self.end()
        self._process = process = await start(self._command, self._niceness, _READ_AHEAD)
        self._stderr = asyncio.create_task(
            log_lines(process.stderr, lambda line: self._log.warning("%s %d: %s", self._name, process.pid, line))
        )

    async def ask(self, pieces: deque[bytes]) -> bytes:
        """The answer to `pieces` as one message; each is let go when it has been written.

        Whoever is interrupted in it must `end` the child: half an exchange would answer the next question.

        Raises:
            ChildEnded: before it had answered.
        """
        await self.tell(pieces)
        process = self._process
        assert process is not None and process.stdout is not None
        try:
            size = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "big")
            return await process.stdout.readexactly(size)
        except asyncio.IncompleteReadError:
            raise ChildEnded from None

    async def tell(self, pieces: deque[bytes]) -> None:
        """`ask` without an answer."""
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            process.stdin.write(length(pieces))
            while pieces:
                process.stdin.write(pieces.popleft())
                await process.stdin.drain()
        except ConnectionError:
            raise ChildEnded from None

    async def end(self) -> None:
        """Kill it, with all that it started."""
        process, self._process = self._process, None
        if process is not None:
            await kill(process)
            # Its pipes end with it; until they have, their ends on this side are open.
            if self._stderr is not None:
                await self._stderr
