"""What leans on parts of uvicorn, h11 and sse-starlette that their documentation does not promise. HTTP process.

Each entry names the version that it was written for, why it is needed, and when it can go. `pyproject.toml` bounds the
three from above, and `tests/server/http/test_compat.py` fails when an upgrade changes what is relied on here.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping

import anyio
import h11
import uvicorn
from sse_starlette import EventSourceResponse
from starlette.types import Message, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

# ---- connections. uvicorn 0.54: a protocol class can be given, but what it may use of `H11Protocol` is not documented.
# It has a timer for idle connections but none for a head that never ends, nor for the rest of a body whose request was
# answered without it, and it answers protocol errors in plain text. This can go when uvicorn has such timers and a hook
# for protocol errors.


class UvicornConnection(H11Protocol):
    """One connection: what can be asked of it, and `on_protocol_error` for what is not HTTP."""

    def on_protocol_error(self, reason: str, *, too_large: bool) -> None:
        """`reason` is a sentence without its full stop."""
        raise NotImplementedError

    def send_400_response(self, msg: str) -> None:
        # uvicorn calls it where it handles the error, and passes on only a fixed text.
        error = sys.exception()
        too_large = getattr(error, "error_status_hint", 400) == 431
        self.on_protocol_error(_without_bytes(str(error or msg)), too_large=too_large)

    def owes_bytes(self) -> bool:
        """Whether the next request of a kept connection has begun, or a body goes on that nobody reads any more."""
        if self.conn.their_state is h11.IDLE:
            return bool(self.conn.trailing_data[0])
        answered = self.cycle is not None and self.cycle.response_complete
        return self.conn.their_state is h11.SEND_BODY and answered

    def keep_idle_timer(self) -> None:
        """uvicorn starts it with the answer, and stops it with the first byte: also of the rest of an answered body."""
        if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def path_under_way(self) -> str | None:
        """Of the request whose answer has not ended; None between two requests, and while a head is incomplete."""
        under_way = self.cycle is not None and not self.cycle.response_complete
        return self.scope["path"] if under_way else None

    def close_with(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Answer and close; only close when an answer is already under way."""
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (
                h11.Response(status_code=status, headers=list(headers.items())),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _without_bytes(reason: str) -> str:
    """h11 0.16 quotes the line at fault, however long it is. This can go when h11 gives the reason by itself."""
    return reason.partition(": bytearray(")[0]


# ---- signals. uvicorn 0.54 raises the signal again after it has shut down, which would make the exit status -15, and
# has no hook for the moment of the signal. This can go when both can be chosen.


class UvicornServer(uvicorn.Server):
    """A server whose process ends by returning. `should_exit`, which uvicorn looks at, ends it."""

    signals = (signal.SIGINT, signal.SIGTERM)

    def on_signal(self) -> None:
        """Called on the event loop, for each signal."""
        raise NotImplementedError

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in self.signals:
            loop.add_signal_handler(number, self.on_signal)
        try:
            yield
        finally:
            for number in self.signals:
                loop.remove_signal_handler(number)


# ---- streams. sse-starlette 3.7 cuts every stream at a signal, without a last event; its documented switch against
# that leaves a task that polls twice a second for as long as the process lives. It enters a cancel scope with a timer
# for every message, which is a tenth of what a token costs. These can go when both cost nothing.


class StalledReader(Exception):
    """A message has waited for longer than the send timeout."""


class UncutEventStream(EventSourceResponse):
    """A response that a signal does not end: the service finishes streams, or ends them with an error event.

    Raises StalledReader.
    """

    client_left = False
    _send_began: float | None = None

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        self._send_began = time.monotonic()
        await send(message)
        self._send_began = None

    async def _listen_for_exit_signal_with_grace(self) -> None:
        """Runs beside the stream, and the response ends when this does: watches what is being sent."""
        timeout_s = math.inf if self.send_timeout is None else self.send_timeout
        waited_s = 0.0
        while waited_s < timeout_s:
            # No message can be late before.
            await anyio.sleep(timeout_s - waited_s)
            waited_s = 0.0 if self._send_began is None else time.monotonic() - self._send_began
        raise StalledReader

    async def note_client_left(self, _: Message) -> None:
        """To be given as `client_close_handler_callable`."""
        self.client_left = True
