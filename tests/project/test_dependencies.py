"""pyproject.toml against the code: what is imported is declared, and the other way round; all of it is pinned."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import packages_distributions

import pytest

from tests.support.modules import IMPORTS, PACKAGES, inside
from tests.support.running import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = ("server", "quantize")
# Started by their names, or read by other tools.
TOOLS = {"pytest-xdist", "mypy", "types-psutil", "ruff"}


def names(requirements: Iterable[str]) -> set[str]:
    """The distributions that `requirements` name, in the spelling that compares."""
    return {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower() for line in requirements}  # type: ignore[index]


DECLARED = names(PROJECT["dependencies"])
# What only some commands need, each with a sentence where it is missing.
OPTIONAL = names(PROJECT["optional-dependencies"]["plots"])
FOR_DEVELOPMENT = names(PROJECT["optional-dependencies"]["dev"])
distributions = cache(packages_distributions)


def imported(*packages: str) -> set[str]:
    """The top-level packages of others that modules of `packages` import."""
    found = {target.partition(".")[0] for name in IMPORTS if inside(name, *packages) for target in IMPORTS[name]}
    return found - sys.stdlib_module_names - set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_imported_is_declared(package: str) -> None:
    declared = DECLARED | (OPTIONAL if package in RUNTIME else FOR_DEVELOPMENT)
    found = imported(package)
    assert found or package == "tools"
    assert sorted(module for module in found if not names(distributions()[module]) & declared) == []


def test_what_is_declared_is_imported() -> None:
    used = {name for module in imported(*RUNTIME) for name in names(distributions()[module])}
    assert sorted((DECLARED | OPTIONAL) - used) == []
    used |= {name for module in imported(*PACKAGES) for name in names(distributions()[module])}
    assert sorted(FOR_DEVELOPMENT - used - TOOLS) == []


def test_what_is_declared_is_pinned() -> None:
    pinned = names((ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines())
    assert sorted((DECLARED | FOR_DEVELOPMENT | names(PROJECT["optional-dependencies"]["docs"])) - pinned) == []
