"""What a measurement says: frozen values, written as JSON below bench/results/. Pure but for reading and writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import msgspec

from bench.setup import ROOT, Setup

RESULTS = ROOT / "bench" / "results"
# The scenarios that are run against mlx_lm.server, in the order in which they are shown.
SERVING = (
    "one_stream",
    "four_streams",
    "prefix",
    "running_stream",
    "short_behind_long",
    "client_leaves",
    "tool_loop",
    "restored_beside",
)
# And the same on a model whose layers look at a window, for the most part.
SLIDING = (
    "sliding_one_stream",
    "sliding_four_streams",
    "sliding_prefix",
    "sliding_running_stream",
    "sliding_short_behind_long",
    "sliding_tool_loop",
    "sliding_restored_beside",
)
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Target:
    """What must hold: `bound` of configi's figure divided by the best of the others', or (`absolute`) of the figure
    itself."""

    bound: float
    at_least: bool = False
    absolute: bool = False

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}{'' if self.absolute else 'x'}"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure that a scenario measures: its key in `Measured.values`, how it is shown, what it must be."""

    key: str
    label: str
    unit: str
    target: Target | None = None

    @property
    def more_is_better(self) -> bool:
        return self.target.at_least if self.target is not None else self.unit == "tok/s"


@dataclass(frozen=True, slots=True)
class Measured:
    """One side of a scenario. `answers` are the texts given, for comparison; `curves` are for plots."""

    values: Mapping[str, float]
    answers: tuple[str, ...] = ()
    curves: Mapping[str, Points] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figure:
    """`peers`: the figures of those who were measured beside the reference."""

    label: str
    unit: str
    reference: float | None
    configi: float
    target: Target | None = None
    peers: Mapping[str, float] = field(default_factory=dict)
    more_is_better: bool = False

    @property
    def best(self) -> float | None:
        """Of the reference and the peers."""
        others = [value for value in (self.reference, *self.peers.values()) if value]
        return (max if self.more_is_better else min)(others, default=None)

    @property
    def ratio(self) -> float | None:
        """configi's figure divided by the best of the others; None where only the figure itself counts."""
        absolute = self.target is not None and self.target.absolute
        return None if absolute or not self.best else self.configi / self.best

    @property
    def met(self) -> bool | None:
        """None where there is nothing to be met."""
        if self.target is None:
            return None
        value = self.configi if self.target.absolute else self.ratio
        return None if value is None else self.target.met(value)


@dataclass(frozen=True, slots=True)
class Curve:
    """For a plot: the points of each side."""

    name: str
    title: str
    x: str
    y: str
    sides: Mapping[str, Points]


@dataclass(frozen=True, slots=True)
class Result:
    """One scenario. `reference` names whom configi is measured against, "" when nobody. Both sides gave `answers`
    greedy answers; `same` of them agree word for word."""

    scenario: str
    title: str
    reference: str
    setup: Setup
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    curves: tuple[Curve, ...] = ()
    answers: int = 0
    same: int = 0

    @property
    def met(self) -> bool:
        return all(figure.met is not False for figure in self.figures)


def figures(
    rows: tuple[Row, ...], reference: Measured | None, configi: Measured, peers: Mapping[str, Measured] | None = None
) -> tuple[Figure, ...]:
    """All sides, row by row."""
    values: Mapping[str, float] = {} if reference is None else reference.values
    return tuple(
        Figure(
            row.label,
            row.unit,
            values.get(row.key),
            configi.values[row.key],
            row.target,
            {name: peer.values[row.key] for name, peer in (peers or {}).items() if row.key in peer.values},
            row.more_is_better,
        )
        for row in rows
    )


def median_of(repetitions: Sequence[Measured]) -> Measured:
    """Value by value; answers one after the other; curves point by point where all have the same x, else the first."""
    first = repetitions[0]
    return Measured(
        {key: median(r.values[key] for r in repetitions) for key in first.values},
        tuple(answer for r in repetitions for answer in r.answers),
        {name: _median_points([r.curves[name] for r in repetitions]) for name in first.curves},
    )


def _median_points(curves: Sequence[Points]) -> Points:
    if len({tuple(x for x, _ in points) for points in curves}) > 1:
        return curves[0]
    return tuple((points[0][0], median(y for _, y in points)) for points in zip(*curves, strict=True))


def same_answers(reference: Measured, configi: Measured) -> int:
    """How many greedy answers agree, but for a space before the first word: mlx-lm drops it, whatever the tokenizer
    says."""
    return sum(a.lstrip(" ") == b.lstrip(" ") for a, b in zip(reference.answers, configi.answers, strict=True))


def agreement(results: Sequence[Result]) -> str:
    """The sentence about them, "" where nothing was compared."""
    answers, same = sum(r.answers for r in results), sum(r.same for r in results)
    return f"{same} of {answers} greedy answers are word for word those of mlx_lm.server." if answers else ""


def write(result: Result, folder: Path = RESULTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.scenario}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    return path


def read(path: Path) -> Result:
    return msgspec.json.decode(path.read_bytes(), type=Result)


def results(folder: Path = RESULTS) -> dict[str, Result]:
    """Everything that was measured, by the name of its scenario."""
    return {path.stem: read(path) for path in sorted(folder.glob("*.json"))}


def show(value: float | None, unit: str) -> str:
    """For people: three digits, and the unit."""
    if value is None:
        return ""
    text = f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    return f"{text} {unit}".strip()


def lines(result: Result) -> list[str]:
    """The result for a terminal."""
    peers = peers_of([result])
    made = [result.title, f"  {result.setup.line()}"]
    names = [result.reference, *peers, "configi"]
    made.append(f"  {'':46} {' '.join(f'{name:>16}' for name in names)} {'ratio':>8} {'target':>9}")
    for figure in result.figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}x"
        target = "" if figure.target is None else str(figure.target)
        verdict = {None: "", True: "met", False: "MISSED"}[figure.met]
        values = [figure.reference, *(figure.peers.get(peer) for peer in peers), figure.configi]
        shown = " ".join(f"{show(value, figure.unit):>16}" for value in values)
        made.append(f"  {figure.label:46} {shown} {ratio:>8} {target:>9} {verdict}".rstrip())
    notes = [*result.notes, agreement([result])]
    return made + [f"  {note}" for note in notes if note]


def peers_of(group: Sequence[Result]) -> list[str]:
    """Who was measured beside the reference, in any of the figures."""
    return list(dict.fromkeys(peer for result in group for figure in result.figures for peer in figure.peers))
