"""The arrows of the architecture: which folder may import which, held by walking every import."""

from __future__ import annotations

import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.support.modules import MODULES, imported_by, inside
from tests.support.running import ROOT

TENSORS = {"mlx", "mlx_lm"}

# Each room with the rooms that it may import; its own is always open to it. A room is a folder, or a module that stands
# beside the folders. What is imported is in the room with the longest name that fits.
ARROWS: dict[str, set[str]] = {
    # The server, from the command down.
    "server.cli": {
        "server", "server.app", "server.http", "server.models", "server.logs", "server.settings", "server.errors",
        "quantize",
    },
    "server.app": {
        "server.api", "server.api.anthropic", "server.api.compat", "server.api.openai", "server.api.openai.decisions",
        "server.api.openai.responses", "server.engine_client", "server.generation", "server.http", "server.metrics",
        "server.models", "server.settings", "server.text",
    },
    # No dialect knows another; but what other servers brought goes beyond OpenAI's protocols, and takes their fields.
    "server.api": {"server", "server.chat", "server.errors", "server.http", "server.models", "server.settings"},
    "server.api.openai": {
        "server", "server.api", "server.chat", "server.errors", "server.http", "server.models", "server.settings",
    },
    "server.api.openai.responses": {
        "server.api", "server.api.openai", "server.chat", "server.errors", "server.http", "server.settings",
    },
    "server.api.openai.decisions": {
        "server.api", "server.api.openai", "server.chat", "server.errors", "server.http", "server.settings",
    },
    "server.api.anthropic": {"server.api", "server.chat", "server.errors", "server.http", "server.settings"},
    "server.api.compat": {
        "server", "server.api", "server.api.openai", "server.chat", "server.errors", "server.http", "server.models",
        "server.settings",
    },
    "server.api.tables": {
        "server.api", "server.api.anthropic", "server.api.compat", "server.api.openai", "server.api.openai.decisions",
        "server.api.openai.responses",
    },
    "server.generation": {
        "server.chat", "server.engine_client", "server.errors", "server.metrics", "server.models", "server.settings",
        "server.text",
    },
    "server.text": {
        "server.allocator", "server.chat", "server.child", "server.errors", "server.settings", "quantize",
    },
    "server.metrics": {"server.chat", "server.errors", "server.models"},
    "server.http": {"server.allocator", "server.child", "server.errors", "server.settings"},
    "server.models": {
        "server.allocator", "server.chat", "server.child", "server.engine_client", "server.errors", "server.settings",
        "server.text", "quantize", "quantize.folder", "quantize.hub",
    },
    "server.chat": {"server.engine_client", "server.errors", "quantize"},
    "server.engine_client": {"server.errors", "server.settings"},
    "server.engine": {"server.allocator", "server.engine_client", "quantize", "quantize.forward"},
    "server.logs": {"server.settings", "quantize"},
    "server.settings": {"server.errors"},
    "server.child": set(),
    "server.allocator": set(),
    "server.errors": set(),
    "server": set(),
    # The builder, which knows no server.
    "quantize": {
        "quantize.build", "quantize.calibrate", "quantize.evaluate", "quantize.plan", "quantize.source",
        "quantize.folder",
    },
    "quantize.evaluate": {
        "quantize", "quantize.calibrate", "quantize.forward", "quantize.source", "quantize.hub", "quantize.folder",
    },
    "quantize.build": {"quantize", "quantize.calibrate", "quantize.plan", "quantize.source", "quantize.folder"},
    "quantize.calibrate": {"quantize", "quantize.forward", "quantize.plan", "quantize.source", "quantize.folder"},
    "quantize.forward": {"quantize", "quantize.source", "quantize.folder"},
    "quantize.plan": {"quantize", "quantize.source", "quantize.folder"},
    "quantize.source": {"quantize", "quantize.hub", "quantize.folder"},
    "quantize.hub": {"quantize", "quantize.folder"},
    "quantize.folder": {"quantize"},
    # What is measured and tested stands above both; nothing of the product knows it.
    "bench": {"server", "quantize", "tests.support"},
    "tests.support": {"server", "quantize"},
    "tests": {"tests.support", "server", "quantize", "bench", "tools"},
    "tools": {"server", "quantize", "bench", "tests.support"},
}  # fmt: skip
# These may import any room of the product.
ABOVE = {"bench", "tests", "tests.support", "tools"}


PRODUCT = {name for name in MODULES if name.split(".")[0] in ("server", "quantize")}


def room(module: str) -> str:
    return max((name for name in ARROWS if inside(module, name)), key=len)


def is_allowed(source: str, target: str) -> bool:
    here, there = room(source), room(target)
    if here == there and here != "tests":
        return True
    if here in ABOVE and there.split(".")[0] in ("server", "quantize"):
        return there.split(".")[0] in ARROWS[here]
    return there in ARROWS[here]


@pytest.mark.parametrize("name", ARROWS)
def test_a_room_imports_only_the_rooms_below_it(name: str) -> None:
    importers = sorted(module for module in MODULES if room(module) == name)
    assert importers, "the rule applies to no module: it would hold whatever the code does"
    breaches = [
        f"{source} imports {target}"
        for source in importers
        for target in sorted(imported_by(source) & MODULES.keys())
        if not is_allowed(source, target)
    ]
    assert breaches == []


def test_no_arrow_is_drawn_that_nothing_uses() -> None:
    used = {(room(source), room(target)) for source in PRODUCT for target in imported_by(source) & MODULES.keys()}
    drawn = {(source, target) for source, targets in ARROWS.items() if source not in ABOVE for target in targets}
    assert sorted(drawn - used) == []


def test_no_test_imports_another_test() -> None:
    tests = {name for name in MODULES if name.rpartition(".")[2].startswith("test_")}
    assert tests
    assert sorted((name, target) for name in MODULES for target in imported_by(name) & tests) == []


def test_the_wire_protocols_know_only_values_of_the_rooms_below_them() -> None:
    values = {
        "server.chat.conversation", "server.chat.deltas", "server.chat.description", "server.chat.parts",
        "server.chat.shapes", "server.chat.tools", "server.models.status", "server.settings.types",
    }  # fmt: skip
    below = ("server.chat", "server.models", "server.settings")
    dialects = [name for name in MODULES if inside(name, "server.api")]
    used = {(dialect, target) for dialect in dialects for target in imported_by(dialect) if inside(target, *below)}
    assert sorted((dialect, target) for dialect, target in used if target not in values) == []


def test_what_reads_a_model_folder_needs_no_mlx() -> None:
    light = [name for name in MODULES if inside(name, "quantize.folder", "quantize.hub")]
    assert [name for name in light if any(inside(target, *TENSORS) for target in imported_by(name))] == []


def test_only_the_engine_process_and_the_builder_import_mlx() -> None:
    users = {name for name in PRODUCT if any(inside(target, *TENSORS) for target in imported_by(name))}
    assert any(inside(name, "server.engine") for name in users), "the test no longer sees who imports mlx"
    assert sorted(name for name in users if not inside(name, "server.engine", "quantize")) == []


@pytest.mark.parametrize(
    ("library", "users"),
    # For tokenizers that have to be put together, and what a config.json leaves out.
    [("transformers", ["quantize.source.compat", "server.chat.tokenizers.conversion"]), ("torch", [])],
)
def test_only_what_needs_it_imports(library: str, users: list[str]) -> None:
    found = [name for name in PRODUCT if any(inside(target, library) for target in imported_by(name))]
    assert sorted(found) == users


def test_no_two_modules_import_each_other() -> None:
    graph = {name: {target for target in imported_by(name) if target in MODULES and target != name} for name in PRODUCT}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


_HEAVY = ("mlx", "mlx_lm", "transformers", "torch", "huggingface_hub", "numpy")


@pytest.mark.parametrize(
    ("module", "heavy"), [("server.app", (*_HEAVY, "tokenizers", "jinja2")), ("server.text.process", _HEAVY)]
)
def test_it_starts_without_what_is_heavy_there(module: str, heavy: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
