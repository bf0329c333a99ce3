"""What goes wrong while the server starts or ends: one sentence on stderr and exit code 1."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import ROOT, config, running

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


def test_an_error_at_the_end_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    with running(_script(tmp_path, "close", "broken_later", "OSError('disk')"), tmp_path) as server:
        # Answered once the lifespan has begun.
        assert server.get("/health")[0] == 200
        assert server.stop() == 1
        log = server.log.read_text()
    assert log.splitlines()[-1] == "configi: The server could not end in order: OSError: disk."
    assert "Traceback" not in log
