"""Starts the real server as a process, on a port of the system's choice, and talks to it over a socket."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.forked import Forked

ROOT = Path(__file__).resolve().parents[2]
_ENGINES = ("server.engine", "tests.support.scripted_engine", "tests.support.failing_engine")
_ADDRESS = re.compile(r"on (http://\S+)")


@dataclass
class Running:
    """A server process that accepts connections."""

    process: subprocess.Popen[str] | Forked
    url: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def engines(self) -> list[psutil.Process]:
        """Its engine processes, living ones only."""
        return engines(self.process.pid)

    def texts(self) -> list[psutil.Process]:
        """Its text processes, living ones only."""
        return [child for child in children(self.process.pid) if _runs(child, "server.text")]

    def workers(self) -> list[psutil.Process]:
        """The processes that fetch, build or check a model for it, living ones only."""
        return [child for child in children(self.process.pid) if _runs(child, "server.models.", "quantize")]

    def get(self, path: str) -> tuple[int, Any]:
        return self._call(urllib.request.Request(self.url + path))

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        data = json.dumps(body).encode()
        return self._call(urllib.request.Request(self.url + path, data, {"content-type": "application/json"}))

    def chat(self, **fields: Any) -> tuple[int, Any]:
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8} | fields
        return self.post("/v1/chat/completions", body)

    def assert_still_serves(self) -> None:
        """The good request after a bad one."""
        # A model of random weights may end its answer at any token, unless it says the same every time.
        status, answer = self.chat(max_tokens=2, temperature=0)
        assert status == 200, answer
        assert answer["usage"]["completion_tokens"] == 2

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout: float = 20) -> int:
        self.process.send_signal(how)
        return self.process.wait(timeout)

    def _call(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, _body(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _body(error.read())


def children(pid: int) -> list[psutil.Process]:
    """Living ones only."""
    return [child for child in psutil.Process(pid).children() if _lives(child)]


def engines(pid: int) -> list[psutil.Process]:
    """The engine processes of process `pid`, living ones only."""
    return [child for child in children(pid) if _runs(child, *_ENGINES)]


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _runs(process: psutil.Process, *modules: str) -> bool:
    try:
        return any(argument.startswith(modules) for argument in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def _body(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode()


@contextlib.contextmanager
def running(command: Sequence[str], folder: Path, cwd: Path = ROOT) -> Iterator[Running]:
    """`command` as a server process; its stderr goes to a file that the test can read."""
    log = folder / "server.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=cwd,
        )
    with _until_killed(process, log) as server:
        yield server


@contextlib.contextmanager
def running_script(file: Path, script: Sequence[str], folder: Path) -> Iterator[Running]:
    """A server with the settings of `file` and, but for `--real`, `tests/support/scripted_engine.py` behind it."""
    log = folder / "server.log"
    with _until_killed(Forked([str(file), *script], log, ROOT), log) as server:
        yield server


@contextlib.contextmanager
def _until_killed(process: subprocess.Popen[str] | Forked, log: Path) -> Iterator[Running]:
    try:
        assert process.stdout is not None
        address = _ADDRESS.search(process.stdout.readline())
        assert address, log.read_text()
        yield Running(process, address.group(1), log)
    finally:
        process.kill()
        process.communicate()


def config(folder: Path, model: Path, **sections: Mapping[str, Any]) -> Path:
    """A config.toml that serves the model folder `model` under the id `tiny`."""
    lines = []
    # Prefixes would go to the user's own cache folder; a test that wants them names another.
    defaults: dict[str, dict[str, Any]] = {"server": {"port": 0}, "cache": {"disk_limit": 0}}
    for name, values in (defaults | {k: dict(v) for k, v in sections.items()}).items():
        values = {"port": 0} | values if name == "server" else values
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    lines += ["[[models]]", 'id = "tiny"', 'aliases = ["gpt-*"]', 'acquire = "local"', f'path = "{model}"']
    path = folder / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def serving_command(folder: Path, model: Path) -> contextlib.AbstractContextManager[Running]:
    """`configi serve`, for tests of the command itself."""
    return running(["-m", "server.cli", "serve", "--config", str(config(folder, model))], folder)


def serving(folder: Path, model: Path, **sections: Mapping[str, Any]) -> contextlib.AbstractContextManager[Running]:
    """A server with a real engine."""
    return running_script(config(folder, model, **sections), ["--real"], folder)


def serving_script(
    folder: Path, model: Path, script: Sequence[str] = (), **sections: Mapping[str, Any]
) -> contextlib.AbstractContextManager[Running]:
    """The same server with a scripted engine behind it."""
    return running_script(config(folder, model, **sections), script, folder)
