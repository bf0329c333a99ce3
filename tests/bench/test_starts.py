"""That each module of bench/ can be imported, which starts it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.mark.parametrize("path", sorted(Path("bench").rglob("*.py")), ids=str)
def test_every_measurement_can_be_started(path: Path) -> None:
    importlib.import_module(".".join(path.with_suffix("").parts))
