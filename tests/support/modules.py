"""The project's own modules and what each imports, read from the source without running it."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from tests.support.running import ROOT

PACKAGES = ("server", "quantize", "bench", "tests", "tools")


def inside(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _names() -> dict[str, Path]:
    """Without the drivers of clients, which run in environments of their own."""
    names = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.is_relative_to(ROOT / "tests/clients/drivers"):
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


@functools.cache
def imported_by(module: str) -> frozenset[str]:
    """The modules that its file imports anywhere in it; `from package import module` is the module, not the package."""
    path = MODULES[module]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, which is not followed here"
            base = node.module or ""
            found.update(name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names)
    return frozenset(found)


MODULES = _names()
