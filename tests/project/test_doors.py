"""Strings of others pass one door to the terminal and one to the disk; the code is read for what goes around them.

To the terminal: only quantize/printable.py prints and only quantize/console.py makes a Console, with markup off.
Whatever is printed is cleaned there, so no caller has to know whose string it is. Log lines are made by server/logs.py.

To the disk: in the rooms that read repositories, model folders and settings, what is joined to a path is written in the
code, or has passed `quantize.names`. The type of the left side is not known here, so divisions of numbers are listed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.support.modules import MODULES, inside

PRODUCT = sorted(name for name in MODULES if inside(name, "server", "quantize"))
DOORS = {"quantize.printable", "quantize.console"}
# Prints config.toml, which is made of the code alone.
OWN_TEXT = {"server.settings.table"}
# Parts of rich that show no strings, or strings only through the console that prints them.
HARMLESS = {
    "rich.table.Table", "rich.progress.BarColumn", "rich.progress.DownloadColumn", "rich.progress.Progress",
    "rich.progress.SpinnerColumn", "rich.progress.TimeRemainingColumn", "rich.progress.TransferSpeedColumn",
}  # fmt: skip
PRINTS = {
    "print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write", "click.echo", "pprint.pprint",
    "traceback.print_exc", "traceback.print_exception",
}  # fmt: skip
# The engine's lines go to the server, which logs them.
LOGGING = {"server.logs", "server.engine.process"}
MAKES_LINES = {"logging.basicConfig", "logging.StreamHandler", "logging.FileHandler", "logging.Formatter"}

HUB_ROOMS = [
    name for name in PRODUCT if inside(name, "quantize.hub", "quantize.folder", "quantize.source", "server.models")
]
CHECKS = {"checked_name", "checked_path", "checked_sha256", "checked_commit"}
JOINS = {"joinpath", "with_name", "with_stem"}
# Numbers, by the text of what divides them.
NUMBERS = {
    "quantize.source.gguf_architectures": {
        "head_dim", "wavelengths", "high - low", "factor", "(1 - smooth) / factor + smooth",
    },
    "server.models.acquire": {"line.total"},
    "quantize.pace": {"now - began"},
    "server.models.status": {"self.rate"},
}  # fmt: skip


def nodes(module: str, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, kinds))


def calls(module: str) -> set[str]:
    return {ast.unparse(node.func) for node in nodes(module, ast.Call) if isinstance(node, ast.Call)}


def names_of_rich(module: str) -> set[str]:
    found: set[str] = set()
    for node in nodes(module, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if inside(alias.name, "rich")}
        elif isinstance(node, ast.ImportFrom) and inside(node.module or "", "rich"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("door", sorted(DOORS))
def test_the_doors_are_where_the_rule_says(door: str) -> None:
    assert calls(door) & PRINTS or names_of_rich(door) - HARMLESS


def test_nothing_prints_around_the_door() -> None:
    outside = [name for name in PRODUCT if name not in DOORS | OWN_TEXT]
    assert [(name, found) for name in outside if (found := calls(name) & PRINTS)] == []
    assert [(name, found) for name in outside if (found := names_of_rich(name) - HARMLESS)] == []


def test_only_the_log_makes_log_lines() -> None:
    # Formatter is a base class there.
    assert [name for name in PRODUCT if name not in LOGGING and calls(name) & MAKES_LINES] == []


def joined(module: str) -> Iterator[ast.expr]:
    """What is put behind a path, and what numbers are divided by."""
    for node in nodes(module, ast.BinOp, ast.Call):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            yield node.right
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            if name in JOINS:
                yield from node.args
            elif name == "Path" or ast.unparse(node.func) == "os.path.join":
                yield from node.args[1:]


def passes(module: str, node: ast.expr) -> bool:
    match node:
        case ast.Constant():
            return True
        case ast.Name(id=name) | ast.Attribute(attr=name) if name.isupper():
            return True
        case ast.Call(func=ast.Name(id=name)) if name in CHECKS:
            return True
    return ast.unparse(node) in NUMBERS.get(module, ())


@pytest.mark.parametrize("module", HUB_ROOMS)
def test_no_name_is_joined_to_a_path_around_the_door(module: str) -> None:
    assert [ast.unparse(node) for node in joined(module) if not passes(module, node)] == []


def test_the_rule_sees_joins() -> None:
    assert sum(1 for module in HUB_ROOMS for _ in joined(module)) > 30
