"""tools/setup.sh, which `make demo` and `make test` begin with, on machines that cannot run configi."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.running import ROOT

OLD = '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.6" && exit 0\nexit 1\n'
# Debian without python3-venv: Python is new enough, but its venv module fails.
NO_VENV = '#!/bin/sh\n[ "$1" = -m ] && exit 1\nexit 0\n'


@pytest.mark.parametrize(
    ("python", "sentence"),
    [
        (None, "configi needs Python 3.11 or newer; python3 here is missing."),
        (OLD, "configi needs Python 3.11 or newer; python3 here is Python 3.9.6."),
        (NO_VENV, "python3 cannot make a virtual environment; install its venv package (Debian: python3-venv)."),
    ],
)
def test_a_machine_without_a_python_that_will_do_is_one_sentence(
    tmp_path: Path, python: str | None, sentence: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "rm"):
        (programs / name).symlink_to(str(shutil.which(name)))
    if python is not None:
        (programs / "python3").write_text(python)
        (programs / "python3").chmod(0o755)
    done = subprocess.run(
        [str(programs / "sh"), "tools/setup.sh", str(tmp_path / "venv"), ".run", "."],
        cwd=ROOT,
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{sentence}\n")
    assert not (tmp_path / "venv").exists()
