"""One connection: bounds on how long a head, a body's rest and a full write buffer may take, and errors in the path's
dialect.

HTTP process, below ASGI: most of what fails here never becomes a request. What uvicorn has and lacks is in
`compat.py`.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import ClassVar

from server.errors import ConfigiError, HeaderTooLarge, InvalidRequest, RequestTooSlow
from server.http.compat import UvicornConnection
from server.http.dialect import Dialects


class GuardedProtocol(UvicornConnection):
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
        if not self.owes_bytes():
            self._disarm()
            self.keep_idle_timer()
        elif self._read_timer is None:
            # More bytes do not prolong the time.
            self._arm()

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

    def on_protocol_error(self, reason: str, *, too_large: bool) -> None:
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

    def _answer(self, error: ConfigiError) -> None:
        path = self.path_under_way()
        # The path of an incomplete head is not known.
        dialect = self.dialects.default if path is None else self.dialects.of(path)
        body, own = dialect.answer(error)
        headers = {
            **own,
            "content-length": str(len(body)),
            "x-request-id": f"req_{uuid.uuid4().hex}",
            "connection": "close",
        }
        self.close_with(error.status, headers, body)


def protocol_class(header_s: float, write_s: float, of: Dialects) -> type[GuardedProtocol]:
    """The class that uvicorn makes one of for each connection, with its timeouts in seconds."""

    class Configured(GuardedProtocol):
        header_timeout_s = header_s
        write_timeout_s = write_s
        dialects = of

    return Configured
