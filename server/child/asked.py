"""A child process that is asked one thing after the other, and ended when an answer takes too much. HTTP process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from server.child.frames import LENGTH_BYTES, length
from server.child.process import kill, log_lines, start

# Of an answer, before it is asked for.
_READ_AHEAD = 2**20
# Of a question, at once: a transport copies what its pipe does not take, and the loop stands still meanwhile.
_WRITTEN = 2**16
# How often what an answer takes is looked at.
_LOOK_S = 0.1
# Times the limit of its time, when the process got no processor, or does nothing.
_WAITED = 10


class ChildEnded(Exception):
    """Before it had answered. It does not run any more."""


class TookTooLong(ChildEnded):
    """It was ended for the time that its answer took."""


class TookTooMuch(ChildEnded):
    """It was ended for its memory."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one answer. `seconds` are those of a processor: on a busy machine a child waits for others. `memory`: resident
    bytes, all of the process."""

    seconds: float
    memory: int


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
    def running(self) -> bool:
        return self._process is not None

    @property
    def resident_bytes(self) -> int:
        """0 when it does not run."""
        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(self._process.pid).memory_info().rss) if self._process is not None else 0
        return 0

    async def start(self) -> None:
        await self.end()
        self._process = process = await start(self._command, self._niceness, _READ_AHEAD)
        self._stderr = asyncio.create_task(
            log_lines(process.stderr, lambda line: self._log.warning("%s %d: %s", self._name, process.pid, line))
        )

    async def ask(self, *questions: deque[bytes], bounds: Bounds) -> bytes:
        """The answer to `questions`, each one message in pieces that are let go when they have been written.

        Interrupted, it ends the child: half an exchange would answer the next question.

        Raises:
            ChildEnded: there is no answer.
        """
        assert self._process is not None
        watching = asyncio.create_task(_watch(self._process.pid, bounds))
        try:
            async with asyncio.timeout(_WAITED * bounds.seconds):
                return await self._exchange(self._process, questions)
        except TimeoutError:
            await self.end()
            raise TookTooLong from None
        except (asyncio.IncompleteReadError, ConnectionError):
            why = watching.result() if watching.done() else None
            await self.end()
            raise why or ChildEnded from None
        except BaseException:
            await self.end()
            raise
        finally:
            watching.cancel()

    async def _exchange(self, process: asyncio.subprocess.Process, questions: Sequence[deque[bytes]]) -> bytes:
        assert process.stdin is not None and process.stdout is not None
        for pieces in questions:
            process.stdin.write(length(pieces))
            while pieces:
                piece = memoryview(pieces.popleft())
                for at in range(0, len(piece), _WRITTEN):
                    process.stdin.write(piece[at : at + _WRITTEN])
                    await process.stdin.drain()
        size = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "big")
        return await process.stdout.readexactly(size)

    async def end(self) -> None:
        """Kill it, with all that it started."""
        process, self._process = self._process, None
        if process is not None:
            await kill(process)
            # Its pipes end with it; until they have, their ends on this side are open.
            if self._stderr is not None:
                await self._stderr


async def _watch(pid: int, bounds: Bounds) -> ChildEnded | None:
    """Kills it beyond its bounds, and says which. RLIMIT_AS does not hold memory back everywhere."""
    with contextlib.suppress(psutil.Error):
        seen = psutil.Process(pid)
        before = _processor_s(seen)
        while True:
            await asyncio.sleep(_LOOK_S)
            if seen.memory_info().rss > bounds.memory:
                seen.kill()
                return TookTooMuch()
            if _processor_s(seen) - before > bounds.seconds:
                seen.kill()
                return TookTooLong()
    return None


def _processor_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
