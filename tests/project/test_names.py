"""One name, one thing: a reader who has met a class or a type alias has met the only one of that name."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.support.modules import MODULES, inside


def _names(path: Path) -> Iterator[str]:
    """The public classes and the type aliases that a module makes."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        # A constant is upper case throughout; a single letter is a type variable.
        yield from (t.id for t in targets if isinstance(t, ast.Name) and t.id[0].isupper() and not t.id.isupper())


def test_no_two_public_classes_or_type_aliases_have_one_name() -> None:
    places = defaultdict(list)
    for module, path in MODULES.items():
        if inside(module, "server", "quantize"):
            for name in _names(path):
                if not name.startswith("_"):
                    places[name].append(module)
    assert {"Message", "TensorRole", "Dialect"} <= places.keys(), "the test no longer sees the names"
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}
