"""Starts a child process that never comes before the event loop, whatever it has to do. HTTP process.

On two processors, a child that computes and is as urgent as this process is a stall of every stream. So each child is
less urgent by its place in the system's own order (`nice`, on macOS as on Linux). It stays in our session: Linux orders
whole sessions before it looks at the processes in them, and a session of its own would be as urgent as ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

# How much less urgent, 0 to 19: what somebody waits for who has asked for little, and all the rest.
SOON, PATIENT = 5, 10


def watch_without_threads() -> None:
    """The running event loop is told by the system when a child ends.

    Python 3.12 and later do so by themselves where Linux can. 3.11 starts a thread for each child and waits until it
    runs: on busy processors a tenth of a second in which the loop does nothing.
    """
    if sys.version_info < (3, 12) and sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.close(os.pidfd_open(os.getpid()))
            watcher = asyncio.PidfdChildWatcher()
            watcher.attach_loop(asyncio.get_running_loop())
            asyncio.set_child_watcher(watcher)


async def start(command: Sequence[str], niceness: int, limit: int = 2**16) -> asyncio.subprocess.Process:
    """`limit`: bytes of its output that are read ahead, and of its longest line. Raises OSError."""
    pipe = asyncio.subprocess.PIPE
    # A group of its own: Ctrl-C on the terminal is the server's to handle, and `kill` reaches all it started.
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=pipe, limit=limit, process_group=0
    )
    # It may have ended. Before its interpreter is up it is the only one of its group; who it starts inherits it.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + niceness))
    return process


async def kill(process: asyncio.subprocess.Process) -> None:
    """With all that it started. Afterwards it is reaped."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def log_lines(stderr: asyncio.StreamReader | None, say: Callable[[str], None]) -> None:
    """Until it ends. `stderr` is None only in asyncio's types."""
    if stderr is None:
        return
    while not stderr.at_eof():
        # asyncio raises it for a line beyond the limit; left unread, a full pipe would stop the child.
        with contextlib.suppress(ValueError):
            if line := await stderr.readline():
                say(line.decode(errors="replace").rstrip())
