"""A scenario: what is done to a server, and the rows it makes. The same code runs against all sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench import servers
from bench.result import Measured, Row


@dataclass(frozen=True, slots=True)
class Side:
    """One of the servers, on the scenario's model, in repetition `number`: no two share a prompt."""

    kind: servers.Kind
    model: Path
    folder: Path
    number: int = 0

    def server(self, engine: Mapping[str, Any] = MappingProxyType({})) -> AbstractContextManager[servers.Server]:
        """Started and warm. Called again, it finds the disk as it left it. `engine`: settings of configi beside its
        defaults."""
        return servers.running(self.kind, self.model, self.folder, engine=engine)


@dataclass(frozen=True, slots=True)
class Plot:
    """A curve of `Measured.curves` that is worth a picture."""

    name: str
    title: str
    x: str
    y: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """`measure` is one repetition, of each of `kinds`. `floor` measures one more side, mlx-lm without a server, where a
    scenario has one."""

    name: str
    title: str
    rows: tuple[Row, ...]
    measure: Callable[[Side], Measured]
    model: str = "smollm2"
    plots: tuple[Plot, ...] = field(default=())
    floor: Callable[[Side], Measured] | None = None
    kinds: tuple[servers.Kind, ...] = servers.KINDS


def on_windows(scenario: Scenario, rows: tuple[Row, ...] | None = None) -> Scenario:
    """The same on the model whose layers look at a window, for the most part."""
    title = f"Sliding window: {scenario.title[0].lower()}{scenario.title[1:]}"
    return replace(
        scenario,
        name=f"sliding_{scenario.name}",
        title=title,
        model="windows",
        plots=(),
        rows=scenario.rows if rows is None else rows,
    )
