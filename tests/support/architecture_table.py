"""What was observed of every architecture: the file that the docs' table is made of and the slow tests are held to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

_FILE = Path(__file__).parent / "data" / "architectures.json"


@dataclass(frozen=True, slots=True)
class Observed:
    """`refused`: why the engine does not serve it; else `wrong` holds what differs from the bare model, by scenario.

    `prefix` is where the KV cache of an earlier prompt can be continued from: "anywhere", "checkpoints", or "never".
    """

    refused: str | None = None
    batched: bool = False
    read_together: bool = False
    prefix: str = "never"
    disk: bool = False
    wrong: dict[str, str] = field(default_factory=dict)


def read() -> tuple[str, dict[str, Observed]]:
    """The version of mlx-lm, and what was observed by name; what differed from the bare model is not kept."""
    kept = json.loads(_FILE.read_text())
    return kept["mlx_lm"], {name: Observed(**fields) for name, fields in kept["architectures"].items()}


def write(observed: Mapping[str, Observed]) -> None:
    rows = {}
    for name, result in sorted(observed.items()):
        rows[name] = dataclasses.asdict(result)
        del rows[name]["wrong"]
    _FILE.write_text(json.dumps({"mlx_lm": version("mlx-lm"), "architectures": rows}, indent=1) + "\n")
