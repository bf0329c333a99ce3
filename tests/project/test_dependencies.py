"""pyproject.toml against the code: what is imported is declared, and the other way round; all of it is locked."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import packages_distributions

import pytest

from tests.support.modules import MODULES, PACKAGES, imported_by, inside
from tests.support.running import ROOT
from tools.lock import APART, TOGETHER, is_supported, lock_of, read_pins, requirements_of

GROUPS = (*TOGETHER, *APART)
# A version, or the hash of one of its files, and nothing else.
LOCKED_LINE = re.compile(r'[\w.-]+==[\w.]+( ; sys_platform == "\w+")? \\|    --hash=sha256:[0-9a-f]{64}( \\)?')
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = ("server", "quantize")
# Part of every environment.
GIVEN = {"pip"}
# Started by their names, or read by other tools.
TOOLS = {"pytest-xdist", "mypy", "types-psutil", "ruff"}


def names(requirements: Iterable[str]) -> set[str]:
    """The distributions that `requirements` name, in the spelling that compares."""
    return {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower() for line in requirements}  # type: ignore[index]


DECLARED = names(PROJECT["dependencies"])
# What only some commands need, each with a sentence where it is missing.
OPTIONAL = names(line for extra in ("plots", "questions") for line in PROJECT["optional-dependencies"][extra])
FOR_DEVELOPMENT = names(PROJECT["optional-dependencies"]["dev"])
distributions = cache(packages_distributions)


def imported(*packages: str) -> set[str]:
    """The top-level packages of others that modules of `packages` import."""
    found = {target.partition(".")[0] for name in MODULES if inside(name, *packages) for target in imported_by(name)}
    return found - sys.stdlib_module_names - set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_imported_is_declared(package: str) -> None:
    declared = DECLARED | (OPTIONAL if package in RUNTIME else FOR_DEVELOPMENT)
    found = imported(package)
    assert found or package == "tools"
    assert sorted(module for module in found - GIVEN if not names(distributions()[module]) & declared) == []


def test_what_is_declared_is_imported() -> None:
    used = {name for module in imported(*RUNTIME) for name in names(distributions()[module])}
    assert sorted((DECLARED | OPTIONAL) - used) == []
    used |= {name for module in imported(*PACKAGES) for name in names(distributions()[module])}
    assert sorted(FOR_DEVELOPMENT - used - TOOLS) == []


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_declared_is_locked(group: str) -> None:
    assert sorted(names(requirements_of(group)) - names(read_pins(lock_of(group)))) == []


@pytest.mark.parametrize("group", GROUPS)
def test_every_locked_version_has_the_hashes_of_its_files_and_names_no_host(group: str) -> None:
    lines = lock_of(group).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not LOCKED_LINE.fullmatch(line)] == []
    entries = [line for line in lines if not line.startswith(" ")]
    assert entries
    # A hash follows each.
    assert [line for line in entries if not line.endswith("\\")] == []


def test_what_is_installed_together_is_locked_in_one_version() -> None:
    pins = [read_pins(lock_of(group)) for group in TOGETHER]
    assert [name for name in pins[0] for other in pins if other.get(name, pins[0][name]) != pins[0][name]] == []


def test_the_build_backend_is_one_version() -> None:
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    assert backend == [f"setuptools=={read_pins(lock_of(''))['setuptools']}"]


@pytest.mark.parametrize(
    ("file", "supported"),
    {
        "mlx-0.32.4-cp311-cp311-macosx_15_0_arm64.whl": True,
        "mlx-0.32.4-cp314-cp314-manylinux_2_35_aarch64.whl": True,
        "mlx-0.32.4-cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64.whl": True,
        "mlx-0.32.4-cp39-abi3-macosx_11_0_universal2.whl": True,
        "mlx-0.32.4-py2.py3-none-any.whl": True,
        "mlx-0.32.4-py3-none-macosx_26_0_arm64.whl": True,
        "mlx-0.32.4-cp310-cp310-macosx_15_0_arm64.whl": False,
        "mlx-0.32.4-cp313-cp313t-manylinux_2_35_x86_64.whl": False,
        "mlx-0.32.4-cp312-cp312-musllinux_1_2_x86_64.whl": False,
        "mlx-0.32.4-cp312-cp312-macosx_10_13_x86_64.whl": False,
        "mlx-0.32.4-cp312-cp312-win_amd64.whl": False,
        "mlx-0.32.4-cp315-abi3-any.whl": False,
        "mlx-0.32.5-py3-none-any.whl": False,
        "mlx-0.32.4.tar.gz": False,
    }.items(),
)  # fmt: skip
def test_hashes_are_of_the_wheels_of_supported_machines(file: str, supported: bool) -> None:
    assert is_supported(file, "0.32.4") is supported
