"""Environments of clients: a folder with the newest versions of their packages, of PyPI or of npm.

They are kept between runs in the user's cache, or in the folder that `CLIENTS_FOLDER` names; deleting one installs it
anew.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

_HOME = Path(os.environ.get("CLIENTS_FOLDER") or platformdirs.user_cache_path("configi-clients"))
_INSTALL_S = 1800


@dataclass(frozen=True)
class Environment:
    """`python`: a virtual environment; otherwise a folder with `node_modules`."""

    home: Path
    python: bool

    @property
    def path(self) -> str:
        """Where its programs are found, before those of this machine."""
        own = [self.home / "bin"] if self.python else [self.home / "node_modules" / ".bin", _newest_node()]
        return os.pathsep.join([*map(str, own), os.environ["PATH"]])

    def version(self, package: str) -> str:
        name = re.sub(r"\[.*", "", package)
        if not self.python:
            version: str = json.loads((self.home / "node_modules" / name / "package.json").read_text())["version"]
            return version
        site = self.home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        [found] = importlib.metadata.distributions(name=name, path=[str(site)])
        return found.version


# What the tests themselves run in.
OWN = Environment(Path(sys.prefix), python=True)


def installed(name: str, packages: Sequence[str], *, python: bool) -> Environment:
    """The environment of this name with the newest versions of `packages`, made where it is not there."""
    environment = Environment(_HOME / name, python)
    stamp = environment.home / ".installed"
    wanted = json.dumps(packages)
    if stamp.exists() and stamp.read_text() == wanted:
        return environment
    remove(environment)
    if python:
        _run([sys.executable, "-m", "venv", str(environment.home)], os.environ["PATH"])
        pip = ["python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, *packages], environment.path)
    else:
        _npm(environment.home, packages, environment.path)
    stamp.write_text(wanted)
    return environment


def remove(environment: Environment) -> None:
    shutil.rmtree(environment.home, ignore_errors=True)


@functools.cache
def _newest_node() -> Path:
    """npm chooses versions that the Node which runs it can run: the newest Node, as npm has it, gets the newest."""
    program = _HOME / "node" / "node_modules" / "node" / "bin"
    if not (program / "node").exists():
        _npm(_HOME / "node", ["node"], os.environ["PATH"])
    return program


def _npm(home: Path, packages: Sequence[str], path: str) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "package.json").write_text('{"private": true, "type": "module"}\n')
    options = ["--silent", "--no-package-lock", "--no-audit", "--no-fund"]
    _run(["npm", "install", "--prefix", str(home), *options, *packages], path)


def _run(command: Sequence[str], path: str) -> None:
    program = shutil.which(command[0], path=path)
    if program is None:
        raise RuntimeError(f"{command[0]} is not installed")
    environment = os.environ | {"PATH": path}
    done = subprocess.run(
        [program, *command[1:]], env=environment, capture_output=True, text=True, timeout=_INSTALL_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout)[-2000:]}")
