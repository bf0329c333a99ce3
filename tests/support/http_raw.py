"""Bytes to a port and back, for what no HTTP client would send."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool

    @property
    def error(self) -> dict[str, Any]:
        """The envelope, checked: JSON, its four keys, a request id beside it."""
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"]
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


def request(method: str, path: str, body: bytes = b"", **headers: str | None) -> bytes:
    """A request as bytes. Underscores in header names stand for dashes; None leaves a default header out."""
    defaults: dict[str, str | None] = {"host": "localhost", "connection": "close"}
    if method == "POST":
        defaults |= {"content-type": "application/json", "content-length": str(len(body))}
    merged = defaults | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in merged.items() if v is not None)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def exchange(port: int, data: bytes, timeout: float = 10) -> Answer | None:
    """Send `data` and read until the server closes or one answer is whole; None when it closes without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as sock:
        sock.sendall(data)
        return read_answer(sock)


def read_answer(sock: socket.socket) -> Answer | None:
    received = b""
    closed = False
    while True:
        head, separator, body = received.partition(b"\r\n\r\n")
        if separator:
            status_line, *lines = head.decode("latin-1").split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            length = int(headers.get("content-length", "0"))
            if len(body) >= length:
                wants_close = headers.get("connection") == "close"
                if wants_close and not closed:
                    closed = _is_closed(sock)
                return Answer(int(status_line.split()[1]), headers, body[:length], closed)
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            piece = b""
        if not piece:
            if closed or not separator:
                return None
            closed = True
        received += piece


def _is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
