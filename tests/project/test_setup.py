"""tools/setup.sh, which `make demo` and `make test` begin with: unfit machines, files that are not as locked."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
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
        [str(programs / "sh"), "tools/setup.sh", str(tmp_path / "venv"), ".run", "requirements.lock"],
        cwd=ROOT,
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{sentence}\n")
    assert not (tmp_path / "venv").exists()


def test_a_file_that_is_not_as_locked_is_not_installed(tmp_path: Path) -> None:
    wheel = tmp_path / "wheels" / "probe-1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("probe.py", "")
        archive.writestr("probe-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: probe\nVersion: 1\n")
        archive.writestr("probe-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("probe-1.dist-info/RECORD", "")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent)}
    environment["PYTHON"] = sys.executable

    def set_up(pin: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "probe.lock").write_text(f"{pin}\n")
        command = ["sh", str(ROOT / "tools/setup.sh"), "venv", ".probe", "probe.lock"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    # As setup.sh makes it, but that pip is borrowed: it would be most of the work, and is not what is tested.
    made = tmp_path / "venv"
    venv.create(made)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(made)}))
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    stamp = made / ".probe"
    for pin in ("probe==1", f"probe==1 --hash=sha256:{'0' * 64}"):
        refused = set_up(pin)
        assert refused.returncode == 1
        assert "hash" in refused.stderr.lower()
        assert not stamp.exists()
    installed = set_up(f"probe==1 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    assert (installed.returncode, stamp.exists()) == (0, True), installed.stderr
