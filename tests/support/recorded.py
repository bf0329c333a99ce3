"""What clients asked a server and what they were told, one JSON line an exchange: between the socket and the guard."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from server.http.guard import Guard


class Recorded:
    """Passes everything through to `guard`; a line is written when an answer has ended."""

    def __init__(self, guard: Guard, file: Path) -> None:
        self._guard = guard
        self._file = file
        self.dialects = guard.dialects

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._guard(scope, receive, send)
            return
        asked, told, status = bytearray(), bytearray(), 0
        answered: list[tuple[bytes, bytes]] = []

        async def heard() -> Message:
            message = await receive()
            asked.extend(message.get("body", b""))
            return message

        async def tell(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            told.extend(message.get("body", b""))
            answered.extend(message.get("headers", ()))
            await send(message)

        try:
            await self._guard(scope, heard, tell)
        finally:
            line = {
                "method": scope["method"],
                "path": scope["path"],
                "query": scope["query_string"].decode("latin-1"),
                "headers": _decoded(scope["headers"]),
                "asked": asked.decode(errors="replace"),
                "status": status,
                "answered": _decoded(answered),
                "told": told.decode(errors="replace"),
            }
            with self._file.open("a") as out:
                out.write(json.dumps(line) + "\n")


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}


def exchanges(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
