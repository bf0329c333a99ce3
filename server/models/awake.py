"""Keeps a Mac awake while requests run: connections over loopback do not. HTTP process, on the event loop.

One process for the whole server, that of macOS's own `caffeinate`: against idle sleep only, so the display may go dark
and a closed lid sleeps. It ends with the server, however that ends. Tested with another command; not run on a Mac.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Sequence

log = logging.getLogger("configi.models")

# Requests of a conversation follow one another: a process for each of them would be a waste.
_LINGER_S = 30.0


def command() -> Sequence[str]:
    """Nothing where there is none."""
    return ("/usr/bin/caffeinate", "-i", "-w", str(os.getpid())) if sys.platform == "darwin" else ()


class Awake:
    def __init__(self, command: Sequence[str] = (), linger_s: float = _LINGER_S) -> None:
        self._command = command
        self._linger_s = linger_s
        self._process: subprocess.Popen[bytes] | None = None
        self._ending: asyncio.TimerHandle | None = None

    def need(self, needed: bool) -> None:
        """From now on, or not any more."""
        if needed:
            self._keep()
        elif self._process is not None and self._ending is None:
            self._ending = asyncio.get_running_loop().call_later(self._linger_s, self.close)

    def close(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        if self._process is not None:
            self._process.terminate()
            # It ends at once; without this it would stay as a zombie.
            self._process.wait()
            self._process = None

    def _keep(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        if not self._command or (self._process is not None and self._process.poll() is None):
            return
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            log.warning("the machine may fall asleep while requests run: %s", error.strerror)
            self._command = ()
