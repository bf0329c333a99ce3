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
from collections.abc import Sequence
from pathlib import Path

import psutil

from server.child.asked import AskedChild, ChildEnded
from server.child.process import SOON
from server.child.turns import Turns
from server.errors import InvalidRequest, ModelUnavailable
from server.text.protocol import REFUSALS, Open, Opened, Refused, TextAnswer, decode_answer, encode

log = logging.getLogger("configi.text")

# -P: a folder named `server` where the user stands must not take our place.
TEXT_COMMAND = (sys.executable, "-P", "-m", "server.text.process")
# What a model's own files cost is no client's doing: a large sentencepiece vocabulary takes a minute, once.
_OPEN_S = 120
# How often memory and time of a command that is under way are looked at.
_LOOK_S = 0.1
# Times the limit of its time, when the process got no processor, or does nothing.
_WAITED = 4
# What it may hold more than when it had opened the model's files: buffers, and caches of the tokenizer. One that holds
# more after its last command is not asked again.
_GROWN, _GROWN_BYTES = 1.1, 8 * 2**20
_SETTLED_S = 2.0


class Lane:
    """The process is started by `open` or the first `ask`, and started again when it was ended for what it did.

    `keeps`: when it has grown, another one takes its place as soon as nobody waits; otherwise the next command's.
    """

    def __init__(
        self,
        folder: Path,
        context_length: int | None,
        *,
        timeout_s: float,
        memory_limit: int,
        conversions: Path | None = None,
        command: Sequence[str] = TEXT_COMMAND,
        niceness: int = SOON,
        keeps: bool = True,
    ) -> None:
        self._folder = folder
        self._context_length = context_length
        self._conversions = conversions
        self._timeout_s = timeout_s
        self._memory_limit = memory_limit
        self._keeps = keeps
        self._child = AskedChild(command, niceness, "text process", log)
        self._turns = Turns()
        # Resident bytes when it had read the model's files and done nothing yet.
        self._opened_bytes = 0
        self._renewal: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self) -> Opened:
        """Start the process; the answer has the vocabulary.

        Raises:
            ModelUnavailable: the folder's files are broken, or too much for the process.
        """
        async with self._turns.turn(""):
            try:
                answer = await self._started(vocabulary=True)
            except InvalidRequest as error:
                raise ModelUnavailable(f"The model's tokenizer or template cannot be read: {error.message}") from error
            assert isinstance(answer, Opened)
            return answer

    async def ask(self, command: bytes, client: str) -> TextAnswer:
        """The answer to `command`, as `encode` makes it.

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
            self._stop_renewal()
            try:
                if self._child.pid is None:
                    await self._started()
                return await self._exchange(command, self._timeout_s)
            finally:
                if self._has_grown():
                    self._renewal = asyncio.get_running_loop().call_later(_SETTLED_S, self._renew)

    async def rest(self) -> None:
        """Give the memory back until the next command."""
        self._stop_renewal()
        async with self._turns.turn(""):
            await self._child.end()

    async def close(self) -> None:
        """End the process for good; what is under way fails."""
        self._closed = True
        self._stop_renewal()
        await self._child.end()
        if self._renewing is not None:
            await asyncio.gather(self._renewing, return_exceptions=True)

    # ---- its process

    async def _started(self, *, vocabulary: bool = False) -> TextAnswer:
        await self._child.start()
        conversions = None if self._conversions is None else str(self._conversions)
        question = Open(str(self._folder), self._context_length, conversions, self._memory_limit, vocabulary)
        try:
            answer = await self._exchange(encode(question), max(self._timeout_s, _OPEN_S))
        except BaseException:
            await self._child.end()
            raise
        self._opened_bytes = self._resident_bytes()
        return answer

    async def _exchange(self, command: bytes, limit_s: float) -> TextAnswer:
        watching = asyncio.create_task(self._watch(limit_s))
        try:
            async with asyncio.timeout(_WAITED * limit_s):
                answer: TextAnswer = decode_answer(await self._child.ask(deque([command])))
        except TimeoutError:
            await self._child.end()
            raise _too_slow(limit_s) from None
        except ChildEnded:
            killed = watching.result() if watching.done() and not watching.cancelled() else None
            await self._child.end()
            message = "Rendering and tokenizing this ended the process that did it."
            raise killed or InvalidRequest(message) from None
        finally:
            watching.cancel()
        if isinstance(answer, Refused):
            raise REFUSALS[answer.kind](answer.message, param=answer.param)
        return answer

    async def _watch(self, limit_s: float) -> InvalidRequest | None:
        """Why it had to kill the process. Time is that of the processor: on a busy machine it waits for others.

        RLIMIT_AS does not hold memory back everywhere.
        """
        with contextlib.suppress(psutil.Error):
            seen = psutil.Process(self._child.pid)
            before = _processor_s(seen)
            while True:
                await asyncio.sleep(_LOOK_S)
                if seen.memory_info().rss > self._memory_limit:
                    seen.kill()
                    return InvalidRequest("Rendering and tokenizing this took too much memory and was ended.")
                if _processor_s(seen) - before > limit_s:
                    seen.kill()
                    return _too_slow(limit_s)
        return None

    # ---- its memory

    def _resident_bytes(self) -> int:
        """0 when it does not run."""
        if (pid := self._child.pid) is not None:
            with contextlib.suppress(psutil.Error):
                return int(psutil.Process(pid).memory_info().rss)
        return 0

    def _has_grown(self) -> bool:
        return self._resident_bytes() > _GROWN * self._opened_bytes + _GROWN_BYTES

    def _renew(self) -> None:
        self._renewal = None
        self._renewing = asyncio.ensure_future(self._renewed())

    async def _renewed(self) -> None:
        async with self._turns.turn(""):
            if self._closed or not self._has_grown():
                return
            await self._child.end()
            if self._keeps:
                # What is wrong now, the next command is told.
                with contextlib.suppress(InvalidRequest, ModelUnavailable, OSError):
                    await self._started()

    def _stop_renewal(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None


def _processor_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _too_slow(limit_s: float) -> InvalidRequest:
    return InvalidRequest(f"Rendering and tokenizing this took longer than {limit_s:g} s and was ended.")
