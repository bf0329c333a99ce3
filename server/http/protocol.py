"""uvicorn's HTTP/1.1 protocol with a bound on how long a request's head may take, and errors in the path's dialect.

HTTP process, below ASGI: most of what fails here never becomes a request. Written for uvicorn 0.54, which has a timer
for idle keep-alive connections but none for a head that never ends, nor for the rest of a body whose request was
answered without it, and which answers protocol errors in plain text.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import ConfigiError, HeaderTooLarge, InvalidRequest, RequestTooSlow
from server.http.dialect import Dialect, Dialects


class GuardedProtocol(H11Protocol):
    """One connection. `write_timeout_s` is how long a full write buffer may stay full before it is cut."""

    header_timeout_s: ClassVar[float]
    write_timeout_s: ClassVar[float]
    dialects: ClassVar[Dialects]
    _read_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._owes_bytes():
            self._disarm()
            if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None:
                # The rest of an answered body has come; uvicorn took its timer away with the first byte.
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        elif self._read_timer is None:
            # More bytes do not prolong the time.
            self._arm()

    def _owes_bytes(self) -> bool:
        """Whether the next request of a kept connection has begun, or a body goes on that nobody reads any more."""
        if self.conn.their_state is h11.IDLE:
            return bool(self.conn.trailing_data[0])
        answered = self.cycle is not None and self.cycle.response_complete
        return self.conn.their_state is h11.SEND_BODY and answered

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        # Closing would wait for the reader to take what is buffered, which a dead one never does.
        self._write_timer = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        error = sys.exception()
        too_large = getattr(error, "error_status_hint", 400) == 431
        # h11 quotes the line at fault, however long it is.
        reason, _, _ = str(error or msg).partition(": bytearray(")
        self._answer(HeaderTooLarge("The headers are too large.") if too_large else InvalidRequest(f"{reason}."))

    def _arm(self) -> None:
        self._read_timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _disarm(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _too_slow(self) -> None:
        self._read_timer = None
        self._answer(RequestTooSlow(f"The request did not arrive within {self.header_timeout_s:g} s."))

    def _dialect(self) -> Dialect:
        """Of the request whose answer is under way; of a head that did not come whole, no path is known."""
        under_way = self.cycle is not None and not self.cycle.response_complete
        return self.dialects.of(self.scope["path"]) if under_way else self.dialects.default

    def _answer(self, error: ConfigiError) -> None:
        """Answer and close; only close when an answer is already under way."""
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body, own = self._dialect().answer(error)
            headers = [
                *own.items(),
                ("content-length", str(len(body))),
                ("x-request-id", f"req_{uuid.uuid4().hex}"),
                ("connection", "close"),
            ]
            for event in (
                h11.Response(status_code=error.status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def protocol_class(header_s: float, write_s: float, of: Dialects) -> type[GuardedProtocol]:
    """The class that uvicorn makes one of for each connection, with its timeouts in seconds."""

    class Configured(GuardedProtocol):
        header_timeout_s = header_s
        write_timeout_s = write_s
        dialects = of

    return Configured
