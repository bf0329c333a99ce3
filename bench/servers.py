"""Starts one of the servers as a user would, on a model folder, and ends it. Never two at once: see serving.py."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from bench import peers
from bench.peers import MODEL, PEERS
from bench.setup import ROOT, environment

Kind = Literal["mlx_lm.server", "vllm-mlx", "Rapid-MLX", "configi"]
KINDS: tuple[Kind, ...] = ("mlx_lm.server", "vllm-mlx", "Rapid-MLX", "configi")
# A module and its arguments, from the config file.
Program = Callable[[Path], list[str]]
_ADDRESS = re.compile(r"on (http://\S+)")
_START_S = 120.0
_STOP_S = 20.0


def _serve(config: Path) -> list[str]:
    return ["server.cli", "serve", "--config", str(config)]


class ServerFailed(Exception):
    """A server did not start, or ended by itself; one sentence, with the end of its log."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server process that answers."""

    kind: Kind
    url: str
    process: subprocess.Popen[str]
    log: Path

    def children(self, *modules: str) -> list[psutil.Process]:
        """Living ones that run one of `modules`; all when none is named."""
        found = ((child, _arguments(child)) for child in psutil.Process(self.process.pid).children())
        return [child for child, given in found if given and (not modules or set(modules) & set(given))]

    def engines(self) -> list[psutil.Process]:
        """The processes that hold a model."""
        return self.children("server.engine", "bench.squeezed")


def _arguments(process: psutil.Process) -> list[str]:
    """None of a process that has ended."""
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.NoSuchProcess:
        return []


@contextlib.contextmanager
def running(
    kind: Kind, model: Path, folder: Path, program: Program = _serve, **sections: Mapping[str, Any]
) -> Iterator[Server]:
    """`kind` serving `model`, with the model in memory. `folder` keeps log and caches; a second call finds them again.

    `program` is what runs configi on its config file, and `sections` are its settings, beside the defaults.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{kind}.log"
    port = None if kind == "configi" else _free_port()
    with log.open("a") as stderr:
        process = subprocess.Popen(
            _command(kind, model, port, program(configuration(folder, model, sections))),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if port is None else stderr,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            env=environment() | (peers.environment(folder / "home") if kind in PEERS else {}),
        )
    try:
        url = f"http://127.0.0.1:{port}" if port else _announced(process, log)
        server = Server(kind, url, process, log)
        _first_answer(server)
        yield server
    finally:
        _end(process)


def _command(kind: Kind, model: Path, port: int | None, own: list[str]) -> list[str]:
    if port is None:
        return [sys.executable, "-m", *own]
    if kind in PEERS:
        return PEERS[kind].command(model, port)
    serve = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model)]
    return [*serve, "--port", str(port), "--log-level", "WARNING"]


def configuration(folder: Path, model: Path, sections: Mapping[str, Mapping[str, Any]]) -> Path:
    """A config.toml for configi; its caches stay in `folder`."""
    settings: dict[str, dict[str, Any]] = {
        "server": {"port": 0},
        "lifecycle": {"load_at_start": True},
        "storage": {"cache_dir": str(folder / "cache"), "allow_download": False},
        "log": {"level": "warning"},
    }
    for name, values in sections.items():
        settings[name] = settings.get(name, {}) | dict(values)
    lines: list[str] = []
    for name, values in settings.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    lines += [
        "[[models]]",
        'id = "bench"',
        f"aliases = [{json.dumps(MODEL)}]",
        'acquire = "local"',
        f"path = {json.dumps(str(model))}",
    ]
    path = folder / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _first_answer(server: Server) -> None:
    """An unrelated short request: it waits for the model and takes what every first request pays."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0, "model": MODEL}
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise ServerFailed(f"{server.kind} ended with code {server.process.returncode}.{_tail(server.log)}")
        request = urllib.request.Request(
            f"{server.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_START_S) as response:
                response.read()
                return
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise ServerFailed(f"{server.kind} refused with {error.code}.{_tail(server.log)}") from error
            time.sleep(0.2)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise ServerFailed(f"{server.kind} did not answer within {_START_S:.0f} s.{_tail(server.log)}")


def _announced(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    if found := _ADDRESS.search(process.stdout.readline()):
        return found[1]
    raise ServerFailed(f"configi did not start.{_tail(log)}")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-5:]
    return "".join(f"\n    {line}" for line in lines)


def _free_port() -> int:
    """The others do not say which port they got, so they are told one."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
