"""Where the server listens, and what goes wrong while it starts or ends: one sentence on stderr and exit code 1."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server.errors import SetupError
from server.http import listen
from server.settings.types import ServerSettings
from tests.support.http_raw import exchange, read_answer, request
from tests.support.running import ROOT, config, running, serving_script
from tests.support.tiny_model import write_tiny_model

# The command, with one step of its lifespan broken.
SERVE = """
import sys
from server.cli.main import main
from server.errors import SetupError
from server.models.residency import Residency

def broken(*_):
    raise {error}

async def broken_later(*_):
    broken()

Residency.{step} = {function}
sys.argv = ["configi", "serve", "--config", {config!r}]
main()
"""


def _script(folder: Path, step: str, function: str, error: str) -> list[str]:
    path = str(config(folder, folder / "no-model", lifecycle={"load_at_start": True}))
    return ["-c", SERVE.format(step=step, function=function, error=error, config=path)]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("RuntimeError('no room')", "The server could not start: RuntimeError: no room."),
        ("KeyError", "The server could not start: KeyError."),
        ("SetupError('Set this first.')", "Set this first."),
    ],
)
def test_an_error_at_the_start_is_one_sentence_and_exit_code_1(tmp_path: Path, error: str, sentence: str) -> None:
    command = [sys.executable, *_script(tmp_path, "preload", "broken", error)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"configi: {sentence}\n")


def test_localhost_is_both_addresses_of_loopback(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    with serving_script(tmp_path, model, server={"host": "localhost"}) as server:
        assert exchange(server.port, request("GET", "/health")) is not None
        with socket.create_connection(("::1", server.port), timeout=10) as sock:
            sock.sendall(request("GET", "/health", host="[::1]"))
            answer = read_answer(sock)
    assert answer is not None
    assert answer.status == 200


def test_the_default_is_one_address_of_loopback() -> None:
    [sock] = listen.bind(ServerSettings(port=0))
    with sock:
        assert sock.getsockname()[0] == "127.0.0.1"
        with pytest.raises(OSError):
            socket.create_connection(("::1", sock.getsockname()[1]), timeout=10)


def test_localhost_with_one_of_its_ports_taken_takes_neither() -> None:
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SetupError, match=rf"::1:{port}: port {port} is already in use"):
            listen.bind(ServerSettings(host="localhost", port=port))
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=10)


def test_an_error_at_the_end_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    with running(_script(tmp_path, "close", "broken_later", "OSError('disk')"), tmp_path) as server:
        # Answered once the lifespan has begun.
        assert server.get("/health")[0] == 200
        assert server.stop() == 1
        log = server.log.read_text()
    assert log.splitlines()[-1] == "configi: The server could not end in order: OSError: disk."
    assert "Traceback" not in log
