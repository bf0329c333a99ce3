"""Writes the lock files: what each group of pyproject.toml installs, by version and by the sha256 of every wheel.

    requirements.lock           configi itself, with the build backend
    requirements-GROUP.lock     an optional group by itself, with all that it needs

Versions are what pip chooses on this machine, from whatever index it is configured to use; `--keep` holds those that
are locked already. Hashes are of all wheels that a supported machine may install, as the index gives them, so nothing
is downloaded for another system. The files name neither the index nor a host.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from packaging.markers import Environment
from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# `sys_platform`, `platform_system`, and how the names of wheels for it begin and end.
SYSTEMS = (
    ("linux", "Linux", ("manylinux", "linux"), ("_x86_64", "_aarch64")),
    ("darwin", "Darwin", ("macosx",), ("_arm64", "_universal2")),
)
# These are installed into one environment, so they are resolved together.
TOGETHER = ("", "dev", "docs")
APART = ("release",)

Pins = Mapping[str, str]


class Resolved:
    """What pip would install for some requirements: each distribution's version, and what it needs in turn."""

    def __init__(self, requirements: Iterable[str], locked: Pins) -> None:
        with tempfile.TemporaryDirectory() as folder:
            constraints, report = Path(folder, "constraints"), Path(folder, "report")
            constraints.write_text("".join(f"{name}=={version}\n" for name, version in locked.items()))
            command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"]
            command += ["--only-binary", ":all:", "--constraint", str(constraints), "--report", str(report)]
            subprocess.run([*command, *requirements], check=True)
            chosen = [item["metadata"] for item in json.loads(report.read_text())["install"]]
        self._metadata: dict[str, dict[str, Any]] = {canonicalize_name(item["name"]): item for item in chosen}

    def closure(self, requirements: Iterable[str]) -> dict[str, tuple[str, set[str]]]:
        """Name -> version, and the systems that need it (their `sys_platform`)."""
        found: dict[str, tuple[str, set[str]]] = {}
        for environment in _environments():
            for name, version in self._needed(requirements, environment).items():
                found.setdefault(name, (version, set()))[1].add(environment["sys_platform"])
        return found

    def _needed(self, requirements: Iterable[str], environment: Environment) -> Pins:
        found: dict[str, str] = {}
        seen: set[tuple[str, str]] = set()
        waiting = [(Requirement(line), "") for line in requirements]
        while waiting:
            requirement, extra = waiting.pop()
            if requirement.marker and not requirement.marker.evaluate(
                {**cast(dict[str, str], environment), "extra": extra}
            ):
                continue
            name = canonicalize_name(requirement.name)
            metadata = self._metadata.get(name) or _only_elsewhere(requirement)
            found[name] = metadata["version"]
            for wanted in {"", *requirement.extras}:
                if (name, wanted) not in seen:
                    seen.add((name, wanted))
                    waiting += [(Requirement(line), wanted) for line in metadata.get("requires_dist", ())]
        return found


def _only_elsewhere(requirement: Requirement) -> dict[str, Any]:
    """What this machine does not install: its version is in the requirement, and it needs nothing in turn."""
    [pin] = requirement.specifier
    if pin.operator != "==":
        raise SystemExit(f"{requirement} is for another system and is not pinned by what needs it.")
    return {"version": pin.version}


def _environments() -> Iterator[Environment]:
    for python in PYTHONS:
        for sys_platform, platform_system, _, _ in SYSTEMS:
            yield Environment(
                implementation_name="cpython", implementation_version=f"{python}.0", os_name="posix",
                platform_machine="arm64" if sys_platform == "darwin" else "x86_64", platform_release="",
                platform_system=platform_system, platform_version="", python_full_version=f"{python}.0",
                platform_python_implementation="CPython", python_version=python, sys_platform=sys_platform,
            )  # fmt: skip


class Index:
    """The files of a distribution with their sha256, as the user's index lists them.

    pip's public commands give the hash of the one file that they choose; what reads the whole list, with the user's
    index, certificates and credentials, is internal. Checked with pip 23.2.1.
    """

    def __init__(self) -> None:
        from pip._internal.commands import create_command

        command: Any = create_command("download")
        # Where pip keeps the temporary folders of a command.
        self._context = command.main_context()
        self._context.__enter__()
        # An extra index need not hold everything.
        logging.getLogger("pip").setLevel(logging.ERROR)
        options, _ = command.parse_args([])
        self._finder = command._build_package_finder(options, command.get_default_session(options))

    def hashes(self, name: str, version: str) -> list[str]:
        """Of every wheel that a supported machine may install. Raises SystemExit when there is none."""
        from pip._internal.index.collector import parse_links
        from pip._internal.models.link import Link

        found: set[str] = set()
        for url in self._finder.index_urls:
            page = self._finder._link_collector.fetch_response(Link(f"{url.rstrip('/')}/{name}/"))
            for link in parse_links(page) if page is not None else ():
                if is_supported(link.filename, version) and (sha256 := link.as_hashes()._allowed.get("sha256")):
                    found.update(sha256)
        if not found:
            raise SystemExit(f"The index has no wheel of {name} {version} with a sha256.")
        return sorted(found)


def is_supported(file: str, version: str) -> bool:
    """Whether `file` is a wheel of `version` for one of PYTHONS on one of SYSTEMS."""
    try:
        _, found, _, tags = parse_wheel_filename(file)
    except InvalidWheelFilename:
        return False
    return str(found) == version and any(_fits_python(tag) and _fits_system(tag) for tag in tags)


def _fits_python(tag: Tag) -> bool:
    numbers = [int(python.partition(".")[2]) for python in PYTHONS]
    if not (match := re.fullmatch(r"(?:cp|py)3(\d*)", tag.interpreter)):
        return False
    minor = int(match[1] or 0)
    if tag.abi in ("none", "abi3"):
        # For this Python and later ones; but cp311-none is for that one alone.
        return minor in numbers or (minor < max(numbers) and (tag.abi == "abi3" or tag.interpreter.startswith("py")))
    return tag.abi == tag.interpreter and minor in numbers


def _fits_system(tag: Tag) -> bool:
    return tag.platform == "any" or any(
        tag.platform.startswith(begins) and tag.platform.endswith(ends) for _, _, begins, ends in SYSTEMS
    )


def read_pins(lock: Path) -> dict[str, str]:
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.is_file() else []
    return dict(match.groups() for line in lines if (match := re.match(r"([\w.-]+)==([^\s;\\]+)", line)))  # type: ignore[misc]


def lock_of(group: str) -> Path:
    return ROOT / (f"requirements-{group}.lock" if group else "requirements.lock")


def requirements_of(group: str) -> list[str]:
    """The build backend belongs to configi: the project is built in the environment that the lock describes."""
    read = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, build = read["project"], read["build-system"]["requires"]
    return list(project["optional-dependencies"][group] if group else [*project["dependencies"], *build])


def _entry(name: str, version: str, systems: set[str], hashes: Iterable[str]) -> str:
    marker = "" if len(systems) == len(SYSTEMS) else f' ; sys_platform == "{systems.pop()}"'
    return f"{name}=={version}{marker}" + "".join(f" \\\n    --hash=sha256:{sha256}" for sha256 in hashes)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.lock")
    parser.add_argument("--keep", action="store_true", help="hold the versions that are locked already")
    keep = parser.parse_args().keep
    index = Index()
    for groups in (TOGETHER, APART):
        wanted = {group: requirements_of(group) for group in groups}
        locked: dict[str, str] = {}
        for group in groups if keep else ():
            locked |= read_pins(lock_of(group))
        resolved = Resolved([line for lines in wanted.values() for line in lines], locked)
        for group, lines in wanted.items():
            needed = sorted(resolved.closure(lines).items())
            entries = [_entry(name, version, on, index.hashes(name, version)) for name, (version, on) in needed]
            lock_of(group).write_text("\n".join(entries) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
