"""One text process and the work that waits for it. HTTP process.

One command at a time, clients in turn. A command that takes too long or too much memory costs the process, which is
killed and started again for the next one; whoever waits keeps waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil

from server.errors import InvalidRequest, ModelUnavailable
from server.text.protocol import (
    LENGTH_BYTES,
    LONGEST_FRAME,
    REFUSALS,
    Open,
    Opened,
    Refused,
    TextAnswer,
    decode_answer,
    frame,
)

log = logging.getLogger("configi.text")

# -P: a folder named `server` where the user stands must not take our place.
TEXT_COMMAND = (sys.executable, "-P", "-m", "server.text.process")
# How often the memory of a command that is under way is looked at.
_LOOK_S = 0.1


class Turns:
    """One at a time; among those who wait, the client that was served longest ago, then the order of arrival."""

    def __init__(self) -> None:
        self._busy = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        if self._busy:
            mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(client, deque()).append(mine)
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():
                    self._pass_on()
                raise
        self._busy = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            # A client that still waits goes to the end, so that the next turn is another's.
            client = next(iter(self._waiting))
            queue = self._waiting.pop(client)
            first = queue.popleft()
            if queue:
                self._waiting[client] = queue
            if not first.done():
                first.set_result(None)
                return
        self._busy = False


class Lane:
    """`work` says in an error what took too long or too much."""

    def __init__(
        self,
        folder: Path,
        context_length: int | None,
        *,
        timeout_s: float,
        memory_limit: int,
        work: str = "Rendering and tokenizing this",
        command: Sequence[str] = TEXT_COMMAND,
    ) -> None:
        self._open = Open(str(folder), context_length, memory_limit)
        self._timeout_s = timeout_s
        self._memory_limit = memory_limit
        self._work = work
        self._command = command
        self._turns = Turns()
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self) -> Opened:
        """Start the process if it does not run.

        Raises:
            ModelUnavailable: the folder's files are broken, or too much for the process.
        """
        async with self._turns.turn(""):
            try:
                answer = await self._started()
            except InvalidRequest as error:
                raise ModelUnavailable(f"The model's tokenizer or template cannot be read: {error.message}") from error
            assert isinstance(answer, Opened)
            return answer

    async def ask(self, command: bytes, client: str) -> TextAnswer:
        """The answer to `command`, a frame.

        A caller that leaves gives up its place in the queue; what is already under way is left to its time limit.

        Raises:
            InvalidRequest: it took too long, too much memory, or the process with it.
            ConfigiError: what the process says is wrong with it.
        """
        begun = asyncio.Event()
        asking = asyncio.ensure_future(self._in_turn(command, client, begun))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            if begun.is_set():
                # Half an exchange would answer the next command.
                asking.add_done_callback(lambda task: task.cancelled() or task.exception())
            else:
                asking.cancel()
            raise

    async def _in_turn(self, command: bytes, client: str, begun: asyncio.Event) -> TextAnswer:
        async with self._turns.turn(client):
            begun.set()
            if self._closed:
                raise ModelUnavailable("The model is being unloaded.")
            if self._process is None:
                await self._started()
            return await self._exchange(command)

    async def rest(self) -> None:
        """Give the memory back until the next command."""
        async with self._turns.turn(""):
            await self._end()

    async def close(self) -> None:
        """End the process for good; what is under way fails."""
        self._closed = True
        await self._end()

    async def _started(self) -> TextAnswer:
        await self._end()
        pipe = asyncio.subprocess.PIPE
        # A session of its own: Ctrl-C on the terminal is the server's to handle.
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, stderr=pipe, limit=LONGEST_FRAME, start_new_session=True
        )
        self._stderr = asyncio.create_task(_log_lines(self._process))
        try:
            return await self._exchange(frame(self._open))
        except BaseException:
            await self._end()
            raise

    async def _exchange(self, command: bytes) -> TextAnswer:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        watching = asyncio.create_task(self._watch_memory(process))
        try:
            async with asyncio.timeout(self._timeout_s):
                process.stdin.write(command)
                await process.stdin.drain()
                length = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "big")
                answer: TextAnswer = decode_answer(await process.stdout.readexactly(length))
        except TimeoutError:
            await self._end()
            raise InvalidRequest(f"{self._work} took longer than {self._timeout_s:g} s and was ended.") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            too_large = watching.done() and not watching.cancelled() and watching.result()
            await self._end()
            reason = "took too much memory and was ended" if too_large else "ended the process that did it"
            raise InvalidRequest(f"{self._work} {reason}.") from None
        finally:
            watching.cancel()
        if isinstance(answer, Refused):
            raise REFUSALS[answer.kind](answer.message, param=answer.param)
        return answer

    async def _watch_memory(self, process: asyncio.subprocess.Process) -> bool:
        """Whether it had to kill the process, which RLIMIT_AS does not hold back everywhere."""
        with contextlib.suppress(psutil.Error):
            seen = psutil.Process(process.pid)
            while True:
                await asyncio.sleep(_LOOK_S)
                if seen.memory_info().rss > self._memory_limit:
                    process.kill()
                    return True
        return False

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            # Its pipes end with it; until they have, their ends on this side are open.
            if self._stderr is not None:
                await self._stderr


async def _log_lines(process: asyncio.subprocess.Process) -> None:
    if (stderr := process.stderr) is not None:
        while not stderr.at_eof():
            with contextlib.suppress(ValueError):
                if line := await stderr.readline():
                    log.warning("text process %d: %s", process.pid, line.decode(errors="replace").rstrip())
