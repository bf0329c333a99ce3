"""Servers as processes forked from one that has imported the server.

Most of what a server costs that is only started and asked a few things is its imports, and the tests start hundreds.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
# The main module as well: else each would import it, which is pytest.
_FORKS.set_forkserver_preload(["__main__", "tests.support.serve_scripted"])


class Forked:
    """`python -m tests.support.serve_scripted` with `arguments`: as much of a `subprocess.Popen` as its users need."""

    def __init__(self, arguments: Sequence[str], log: Path, cwd: Path) -> None:
        reader, writer = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(target=_serve, args=(arguments, log, cwd, dict(os.environ), writer))
        self._process.start()
        writer.close()
        with reader:
            self.stdout = os.fdopen(os.dup(reader.fileno()))

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("serve_scripted", timeout or 0)
        return self.returncode

    def send_signal(self, how: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, how)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self) -> None:
        self.stdout.close()
        self.wait()


def _serve(arguments: Sequence[str], log: Path, cwd: Path, environment: Mapping[str, str], stdout: Connection) -> None:
    """In the new process, which is to be as one that was started: its output, folder and environment."""
    os.dup2(stdout.fileno(), 1)
    stdout.close()
    with log.open("w") as stderr:
        os.dup2(stderr.fileno(), 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    from tests.support.serve_scripted import main

    main(arguments)
