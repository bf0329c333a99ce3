"""Processes forked from one that has imported what they need: servers, commands, workers.

Most of what such a process costs that is only started and asked a few things is its imports, and the tests start
hundreds.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
# Neither MLX, which does not outlive a fork everywhere, nor huggingface_hub, which reads the environment once and for
# all. The main module as well: else each would import it, which is pytest.
_FORKS.set_forkserver_preload(
    ["__main__", "tests.support.serve_scripted", "server.cli.main", "server.models.fetch", "rich.console", "httpx2"]
)


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


def run(
    module: str,
    *arguments: str,
    cwd: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """`main` of `module` with `arguments` as a process that reads nothing, and all that it said.

    What Python itself takes from the environment as it starts is that of the tests.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder, "stdout"), Path(folder, "stderr")
        process = _FORKS.Process(target=_run, args=(module, arguments, outputs, cwd or Path.cwd(), dict(environment)))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([module, *arguments], timeout)
        said = [path.read_text() if path.exists() else "" for path in outputs]
        return subprocess.CompletedProcess([module, *arguments], process.exitcode, *said)


def _serve(arguments: Sequence[str], log: Path, cwd: Path, environment: Mapping[str, str], stdout: Connection) -> None:
    os.dup2(stdout.fileno(), 1)
    stdout.close()
    _settle(cwd, environment, {2: log})
    from tests.support.serve_scripted import main

    main(arguments)


def _run(
    module: str, arguments: Sequence[str], outputs: tuple[Path, Path], cwd: Path, environment: Mapping[str, str]
) -> None:
    _settle(cwd, environment, {1: outputs[0], 2: outputs[1]})
    begun = importlib.import_module(module)
    sys.argv = [str(begun.__file__), *arguments]
    sys.exit(begun.main())


def _settle(cwd: Path, environment: Mapping[str, str], outputs: Mapping[int, Path]) -> None:
    """A new process is to be as one that was started: its output, folder and environment."""
    for number, path in outputs.items():
        with path.open("w") as output:
            os.dup2(output.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
