"""Bodies that take long to read are read in a process of their own, one at a time, clients in turn. HTTP process.

Beside the event loop, a thread that computes takes the interpreter at every system call of the loop and keeps it for a
whole switch interval: two streams stood still for half a second while eight large bodies were read. A process also
takes with it the memory that reading needed. `parse_process.py` is its side.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, cast

from starlette.requests import ClientDisconnect

from server.child.asked import AskedChild, Bounds, ChildEnded, TookTooLong, TookTooMuch
from server.child.process import SOON
from server.child.turns import Turns
from server.errors import InvalidRequest

log = logging.getLogger("configi.body")

T = TypeVar("T")

# -P: a folder named `server` where the user stands must not take our place.
PARSE_COMMAND = (sys.executable, "-P", "-m", "server.http.parse_process")
# The largest body within the limits takes a tenth of it.
BOUNDS = Bounds(seconds=10, memory=2 * 10**9)
# Its start takes a moment, so that it stays for as long as somebody works.
_IDLE_S = 600


class BodyParser:
    """Its process is started by the first body, and ended when none has come for a while."""

    def __init__(self, command: Sequence[str] = PARSE_COMMAND, bounds: Bounds = BOUNDS) -> None:
        self._child = AskedChild(command, SOON, "body process", log)
        self._bounds = bounds
        self._turns = Turns()
        self._idle: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    async def parse(
        self,
        parse: Callable[[bytes], T],
        pieces: deque[bytes],
        client: str,
        has_left: Callable[[], Awaitable[bool]],
    ) -> T:
        """`parse` of what `pieces` are together; they are used up. It is sent by name: a function of a module.

        Raises:
            ConfigiError: what `parse` raises.
            InvalidRequest: it takes too long, or ends the process.
            ClientDisconnect: whoever sent it has left when its turn comes.
        """
        async with self._turns.turn(client):
            if await has_left():
                raise ClientDisconnect
            self._stop_idle_timer()
            try:
                answer = await self._answer(pickle.dumps(parse), pieces)
            finally:
                self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._rest)
        value, error, traceback = pickle.loads(answer)
        if traceback:
            log.error("unhandled error in the body process: %s", traceback)
        if error is not None:
            raise error
        return cast(T, value)

    async def _answer(self, how: bytes, body: deque[bytes]) -> bytes:
        try:
            if not self._child.running:
                await self._child.start()
            return await self._child.ask(deque([how]), body, bounds=self._bounds)
        except TookTooLong:
            message = f"Reading the request body took longer than {self._bounds.seconds:g} s and was ended."
            raise InvalidRequest(message) from None
        except TookTooMuch:
            raise InvalidRequest("Reading the request body took too much memory and was ended.") from None
        except ChildEnded:
            raise InvalidRequest("Reading the request body ended the process that did it.") from None

    async def close(self) -> None:
        self._stop_idle_timer()
        await self._child.end()
        if self._ending is not None:
            await self._ending

    def _rest(self) -> None:
        self._idle = None
        self._ending = asyncio.ensure_future(self._end_in_turn())

    async def _end_in_turn(self) -> None:
        async with self._turns.turn(""):
            await self._child.end()

    def _stop_idle_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
