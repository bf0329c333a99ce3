"""A private folder for the socket between two processes, which does not outlive them. HTTP process.

It is in the system's temporary folder, mode 0700, so that nobody else on this machine can connect. Its owner holds a
lock on it, which the system takes back however the owner ends; whoever makes the next one removes those without.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

# Short: macOS allows 104 characters for a socket's path.
_PREFIX = "configi-socket-"
_SOCKET = "s"


class SocketFolder:
    def __init__(self) -> None:
        _sweep()
        while True:
            self._path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            # Another server may have swept it away before the lock was held.
            if (lock := _lock(self._path)) is not None:
                if self._path.exists():
                    self._lock = lock
                    return
                os.close(lock)

    @property
    def socket(self) -> Path:
        return self._path / _SOCKET

    def remove(self) -> None:
        """May be called again."""
        if self._lock >= 0:
            _remove(self._path)
            os.close(self._lock)
            self._lock = -1


def _sweep() -> None:
    """Remove what servers left behind that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if (lock := _lock(path)) is not None:
            _remove(path)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock; None when somebody else does, or it is no folder of ours."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(folder: Path) -> None:
    # Nothing but the socket: a folder that holds anything else is not ours to empty.
    with contextlib.suppress(OSError):
        (folder / _SOCKET).unlink(missing_ok=True)
        folder.rmdir()
