"""The arrows of the architecture, held by walking every import of server/ and quantize/, those inside functions too."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TENSORS = {"mlx", "mlx_lm"}


def module_names() -> dict[str, Path]:
    names = {}
    for package in ("server", "quantize"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = module_names()
ENGINE_PROCESS = {name for name in MODULES if name.startswith("server.engine.")}


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it; `from package import module` is the module, not the package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, which this test does not follow"
            base = node.module or ""
            found.update(name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names)
    return found


IMPORTS = {name: imported(path) for name, path in MODULES.items()}


def inside(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def ours(module: str) -> bool:
    return inside(module, "server", "quantize")


def breaches(importer: set[str], allowed: set[str], packages: tuple[str, ...] = ()) -> list[str]:
    """Each import of our own modules that goes from `importer` to what is neither allowed nor in `packages`."""
    assert importer, "the rule applies to no module: it would hold whatever the code does"
    return [
        f"{source} imports {target}"
        for source in sorted(importer)
        for target in sorted(filter(ours, IMPORTS[source]))
        if target not in allowed and not inside(target, *packages)
    ]


def modules_of(package: str) -> set[str]:
    return {name for name in MODULES if inside(name, package)}


def test_the_wire_protocols_know_only_frozen_values_below_them() -> None:
    allowed = {
        "server",
        "server.errors",
        "server.settings.types",
        "server.chat.conversation",
        "server.chat.events",
        "server.models.status",
    }
    assert breaches(modules_of("server.api"), allowed, ("server.api", "server.http")) == []


def test_the_chat_package_knows_no_protocol_and_no_process() -> None:
    assert (
        breaches(modules_of("server.chat"), {"server.errors", "server.engine_client.protocol"}, ("server.chat",)) == []
    )


def test_the_engine_process_knows_nothing_but_its_own_modules_and_the_messages() -> None:
    assert {"server.engine.process", "server.engine.engine"} <= ENGINE_PROCESS
    assert breaches(ENGINE_PROCESS, ENGINE_PROCESS | {"server.engine_client.protocol"}) == []


def test_the_http_side_of_the_engine_never_imports_the_modules_of_the_process() -> None:
    outside = set(MODULES) - ENGINE_PROCESS
    assert [f"{name} imports {target}" for name in sorted(outside) for target in IMPORTS[name] & ENGINE_PROCESS] == []


def test_models_know_nothing_of_those_who_ask_for_them() -> None:
    above = ("server.api", "server.chat", "server.generation", "server.app", "server.cli")
    importers = modules_of("server.models")
    assert importers
    wrong = [(name, target) for name in sorted(importers) for target in IMPORTS[name] if inside(target, *above)]
    assert wrong == []


def test_the_builder_works_without_the_server() -> None:
    assert breaches(modules_of("quantize"), set(), ("quantize",)) == []


def test_only_the_engine_process_and_the_builder_import_mlx() -> None:
    users = {name for name in MODULES if any(inside(target, *TENSORS) for target in IMPORTS[name])}
    assert "server.engine.loading" in users or "server.engine.batch" in users, "the test no longer sees who imports mlx"
    assert sorted(name for name in users - ENGINE_PROCESS if not inside(name, "quantize")) == []


@pytest.mark.parametrize("library", ["transformers", "torch"])
def test_nothing_imports(library: str) -> None:
    assert [name for name in MODULES if any(inside(target, library) for target in IMPORTS[name])] == []


def test_no_two_modules_import_each_other() -> None:
    graph = {name: {target for target in IMPORTS[name] if target in MODULES and target != name} for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


def test_the_application_starts_without_mlx_transformers_or_the_hub() -> None:
    heavy = ("mlx", "mlx_lm", "transformers", "torch", "huggingface_hub")
    script = f"import sys, server.app; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
