"""The drivers of clients' SDKs: what each says of itself, and what comes of a run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.client_environments import Environment
from tests.support.running import ROOT

_DRIVERS = ROOT / "tests" / "clients" / "drivers"
_SHARED = _DRIVERS / "shared"
# The block of a script that PEP 723 describes, behind # or //.
_BLOCK = re.compile(r"^(?:#|//) /// script$\s(?P<lines>(?:^(?:#|//).*$\s)+?)^(?:#|//) ///$", re.MULTILINE)
_RUN_S = 300


@dataclass(frozen=True)
class Driver:
    """A file that drives one client. `apis`: the protocols that it speaks; the version of the first package counts."""

    path: Path
    client: str
    packages: tuple[str, ...]
    apis: tuple[str, ...]

    @property
    def python(self) -> bool:
        return self.path.suffix == ".py"


def drivers() -> tuple[Driver, ...]:
    return tuple(_driver(path) for path in sorted(_DRIVERS.iterdir()) if path.suffix in (".py", ".mjs"))


def _driver(path: Path) -> Driver:
    block = _BLOCK.search(path.read_text(encoding="utf-8"))
    assert block, f"{path.name} does not say what it needs"
    said = tomllib.loads(re.sub(r"^(#|//) ?", "", block["lines"], flags=re.MULTILINE))
    about = said["tool"]["driver"]
    return Driver(path, about["client"], tuple(said["dependencies"]), tuple(about["apis"]))


def run(
    driver: Driver, environment: Environment, api: str, server: Mapping[str, str], home: Path
) -> Iterator[dict[str, Any]]:
    """The lines that it prints, one for each feature. `server`: BASE, KEY and MODEL; `home`: the client's."""
    # The driver's own folder is not searched: it holds files that are named like packages.
    command, folder = ["python", "-P", str(driver.path)], home
    if not driver.python:
        command, folder = ["node", driver.path.name], environment.home
        # Node looks for packages from where a file is.
        for file in (driver.path, _SHARED / "drive.mjs"):
            shutil.copy(file, folder)
    variables = {"PATH": environment.path, "HOME": str(home), "LANG": "C.UTF-8", "PYTHONPATH": str(_SHARED), "API": api}
    program = shutil.which(command[0], path=environment.path)
    assert program
    done = subprocess.run(
        [program, *command[1:]],
        cwd=folder,
        env=variables | dict(server),
        capture_output=True,
        text=True,
        timeout=_RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for line in done.stdout.splitlines():
        if line.startswith('{"feature"'):
            yield json.loads(line)
