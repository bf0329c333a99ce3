"""Ends a process when the one that started it is gone, so that no orphan keeps gigabytes of unified memory.

`quantize/worker.py` has the same few lines under the same name: the builder does not know the server, nor the engine
process the builder.
"""

from __future__ import annotations

import os
import threading
from typing import BinaryIO


def exit_with_parent(stdin: BinaryIO) -> None:
    """End this process at once, status 1, when the other end of `stdin` closes, as it does however the parent dies."""

    def wait() -> None:
        # Not the buffered read: its lock would be held when the interpreter ends.
        while os.read(stdin.fileno(), 4096):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="exit-with-parent", daemon=True).start()
