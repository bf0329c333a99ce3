"""A command in any locale, and with an output that is full, closed or left: an answer or one sentence, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import ROOT, serving_command
from tests.support.tiny_model import write_tiny_model

COMMAND = (sys.executable, "-P", "-m", "server.cli")
COMMANDS = {"models": 0, "--help": 0, "--version": 0, "verify /nothing/here": 1, "frobnicate": 2}
# Without UTF-8 mode Python takes what the locale says.
LOCALES = {
    "C": {"LC_ALL": "C"},
    "ASCII alone": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    "Latin 1": {"PYTHONIOENCODING": "latin-1"},
    "one that is not installed": {"LC_ALL": "xx_YY.KOI8-R"},
}


def run(words: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, *words.split()]
    if shell:
        command = ["sh", "-c", f'"$@" {shell}', "sh", *command]
    return subprocess.run(
        command, capture_output=True, timeout=120, cwd=ROOT, check=False, env=os.environ | environment
    )


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("locale", LOCALES)
def test_a_command_works_in_any_locale(words: str, locale: str) -> None:
    done = run(words, **LOCALES[locale])
    assert (done.returncode, b"Traceback" in done.stdout + done.stderr) == (COMMANDS[words], False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
@pytest.mark.parametrize("words", ["models", "--help", "--version"])
def test_a_full_output_is_one_sentence(words: str) -> None:
    done = run(words, ">/dev/full")
    assert (done.returncode, done.stderr) == (1, b"configi: the output is full.\n")


@pytest.mark.parametrize(("shell", "code"), [(">&-", 0), (">&- 2>&-", 0), ("2>&-", 0)])
def test_a_closed_output_is_done_without(shell: str, code: int) -> None:
    done = run("models", shell)
    assert (done.returncode, b"Traceback" in done.stderr) == (code, False)


def test_who_stops_reading_hears_nothing_more() -> None:
    # `true` ends at once; the output is closed when it is written to.
    done = run("models", "| true")
    assert done.stderr == b""


def test_a_name_that_is_not_text_is_one_sentence(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/mod\xe8le"))
    write_tiny_model(tmp_path / "model").rename(folder)
    done = subprocess.run(
        [*COMMAND, "serve", "--port", "0", "--model", folder], capture_output=True, timeout=120, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert (
        done.stderr.startswith(b"configi: the name of a file or folder is not text") and done.stderr.count(b"\n") == 1
    )


def test_a_server_outlives_whoever_read_its_lines(tmp_path: Path) -> None:
    with serving_command(tmp_path, write_tiny_model(tmp_path / "model")) as server:
        assert server.process.stdout is not None
        server.process.stdout.close()
        server.process.stdout = None
        server.assert_still_serves()
        server.assert_still_serves()
        assert server.stop() == 0
