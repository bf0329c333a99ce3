"""How a child that answers is asked: each message behind its length in four bytes, over its stdin and stdout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

LENGTH_BYTES = 4


def length(pieces: Iterable[bytes]) -> bytes:
    """What goes before a message that is `pieces`, one after the other."""
    return sum(map(len, pieces)).to_bytes(LENGTH_BYTES, "big")


def write_frame(stream: BinaryIO, message: bytes) -> None:
    stream.write(length([message]))
    stream.write(message)
    stream.flush()


def read_frame(stream: BinaryIO) -> bytes | None:
    """None when the other side is gone."""
    head = stream.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    size = int.from_bytes(head, "big")
    body = stream.read(size)
    return body if len(body) == size else None
