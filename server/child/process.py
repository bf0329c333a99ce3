"""Starts a child process that never comes before the event loop, whatever it has to do. HTTP process.

On two processors, a child that computes and is as urgent as this process is a stall of every stream. So each child is
less urgent by its place in the system's own order (`nice`, on macOS as on Linux). Where Linux divides the processors
among sessions first (`sched_autogroup_enabled`, the default of most distributions), a child in ours would use up what
is this process's own, however nice it is: so each has a session, which is nice as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

# How much less urgent, 0 to 19: what somebody waits for who has asked for little, and all the rest.
SOON, PATIENT = 5, 10


async def start(command: Sequence[str], niceness: int, limit: int = 2**16) -> asyncio.subprocess.Process:
    """`limit`: bytes of its output that are read ahead, and of its longest line. Raises OSError."""
    pipe = asyncio.subprocess.PIPE
    # With its session it has a group: Ctrl-C on the terminal is ours to handle, and `kill` reaches all it started.
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=pipe, limit=limit, start_new_session=True
    )
    _be_nice(process.pid, niceness)
    return process


def _be_nice(pid: int, niceness: int) -> None:
    # It may have ended. Before its interpreter is up it is the only one of its group; who it starts inherits it.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + niceness))
    # There are none without autogroups; and but for root, Linux changes only one in a tenth of a second.
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness))


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
