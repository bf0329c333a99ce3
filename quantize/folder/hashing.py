"""The sha256 of a file, for everything that checks one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

_CHUNK = 2**22


def sha256_of(file: Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """In hex. `on_bytes` is called with the size of each chunk read. Releases the GIL while hashing. Raises OSError."""
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()
