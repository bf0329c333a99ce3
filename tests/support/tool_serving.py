"""The real server with weights that were not trained to call tools: a random tiny model, and the embedded one.

The template of the second knows no tools. What a grammar holds is well formed all the same.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import embedding_worker
from tests.support.running import Running, serving
from tests.support.tool_model import write_tool_model

MODELS = ["tiny", pytest.param("embedded", marks=pytest.mark.slow)]
CITIES = ["Paris", "Rome", "Oslo"]
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": CITIES}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
SEARCH = {
    "type": "object",
    "properties": {"query": {"type": "string", "pattern": "^[a-z]{1,8}$"}},
    "required": ["query"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {"weather": WEATHER, "search": SEARCH}


@contextlib.contextmanager
def serving_tools(model: str, folder: Path) -> Iterator[Running]:
    """`model`: one of MODELS."""
    if model == "tiny":
        path = write_tool_model(folder / "model")
    else:
        out, _ = embedding_worker(folder / "cache").communicate()
        path = Path(json.loads(out.splitlines()[-1])["folder"])
    with serving(folder, path) as server:
        yield server
