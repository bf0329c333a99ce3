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
from dataclasses import replace
from pathlib import Path

from server.child.asked import AskedChild, Bounds, ChildEnded, TookTooLong, TookTooMuch
from server.child.process import SOON
from server.child.turns import Turns
from server.errors import InvalidRequest, ModelUnavailable
from server.text.protocol import REFUSALS, Open, Opened, Refused, TextAnswer, decode_answer, encode

log = logging.getLogger("configi.text")

# -P: a folder named `server` where the user stands must not take our place.
TEXT_COMMAND = (sys.executable, "-P", "-m", "server.text.process")
# What a model's own files cost is no client's doing: a large sentencepiece vocabulary takes a minute, once.
_OPEN_S = 60
# What it may hold more than when it had opened the model's files: buffers, and caches of the tokenizer. One that holds
# more after its last command is not asked again.
_GROWN, _GROWN_BYTES = 1.1, 8 * 2**20
_SETTLED_S = 2.0


class Lane:
    """The process is started by `open` or the first `ask`, and started again when it was ended for what it did.

    `work` says in an error what took too long or too much. `keeps`: when it has grown, another one takes its place as
    soon as nobody waits; otherwise the next command's.
    """

    def __init__(
        self,
        folder: Path,
        context_length: int | None,
        *,
        timeout_s: float,
        memory_limit: int,
        conversions: Path | None = None,
        work: str,
        command: Sequence[str] = TEXT_COMMAND,
        niceness: int = SOON,
        keeps: bool = True,
        wire_format: str = "auto",
    ) -> None:
        self._folder = folder
        self._context_length = context_length
        self._conversions = conversions
        self._wire_format = wire_format
        self._work = work
        self._bounds = Bounds(timeout_s, memory_limit)
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
                if not self._child.running:
                    await self._started()
                return await self._exchange(command, self._bounds)
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
        memory, wire_format = self._bounds.memory, self._wire_format
        question = Open(str(self._folder), self._context_length, conversions, memory, vocabulary, wire_format)
        try:
            answer = await self._exchange(
                encode(question), replace(self._bounds, seconds=max(self._bounds.seconds, _OPEN_S))
            )
        except BaseException:
            await self._child.end()
            raise
        self._opened_bytes = self._child.resident_bytes
        return answer

    async def _exchange(self, command: bytes, bounds: Bounds) -> TextAnswer:
        try:
            answer: TextAnswer = decode_answer(await self._child.ask(deque([command]), bounds=bounds))
        except TookTooLong:
            raise InvalidRequest(f"{self._work} took longer than {bounds.seconds:g} s and was ended.") from None
        except TookTooMuch:
            raise InvalidRequest(f"{self._work} took too much memory and was ended.") from None
        except ChildEnded:
            raise InvalidRequest(f"{self._work} ended the process that did it.") from None
        if isinstance(answer, Refused):
            raise REFUSALS[answer.kind](answer.message, param=answer.param)
        return answer

    # ---- its memory

    def _has_grown(self) -> bool:
        return self._child.resident_bytes > _GROWN * self._opened_bytes + _GROWN_BYTES

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
