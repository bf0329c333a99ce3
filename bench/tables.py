"""bench/results/ as the tables and pictures of docs/performance.md; tests/project/ holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bench import svg
from bench.result import RESULTS, Figure, Result, agreement, read, show

# Table -> the results in it, in this order.
TABLES: Mapping[str, tuple[str, ...]] = {
    "bench-serving": (
        "one_stream",
        "four_streams",
        "prefix",
        "running_stream",
        "short_behind_long",
        "client_leaves",
        "tool_loop",
    ),
    "bench-floor": ("throughput", "prompt_length"),
    "bench-overhead": ("overhead",),
    "bench-soak": ("soak",),
}


def results() -> dict[str, Result]:
    return {path.stem: read(path) for path in sorted(RESULTS.glob("*.json"))}


def tables(measured: Mapping[str, Result]) -> dict[str, str]:
    """Every table by its name; what was not measured is not in it."""
    return {name: _table([measured[n] for n in names if n in measured]) for name, names in TABLES.items()}


def pictures(measured: Mapping[str, Result]) -> dict[str, str]:
    """Every picture by its file name."""
    made = {f"bench-{c.name}.svg": svg.lines(c) for result in measured.values() for c in result.curves}
    compared = [measured[name] for name in TABLES["bench-serving"] if name in measured]
    rows = [_bar(result, figure) for result in compared for figure in result.figures]
    if rows := [row for row in rows if row is not None]:
        made["bench-ratios.svg"] = svg.bars("configi against mlx_lm.server", rows)
    return made


def _bar(result: Result, figure: Figure) -> svg.Bar | None:
    """As a factor where more is better."""
    if not figure.ratio or figure.target is None or not figure.unit:
        return None
    label = f"{result.scenario.replace('_', ' ')}: {figure.label.partition(':')[0]}"
    if figure.target.at_least:
        return svg.Bar(label, figure.ratio, figure.target.bound)
    return svg.Bar(label, 1 / figure.ratio, 1 / figure.target.bound)


def _table(group: list[Result]) -> str:
    if not group:
        return "Not measured yet.\n"
    reference = group[0].reference
    # Nobody to compare with: then there is no ratio either.
    compared = any(figure.ratio is not None for result in group for figure in result.figures)
    head = ["", *([reference] if reference else []), "configi", *(["Ratio"] if compared else []), "Wanted", "Met"]
    rows = [head, ["---"] * len(head)]
    for result in group:
        rows.append([f"**{result.title}**", *[""] * (len(head) - 1)])
        rows += [_row(figure, bool(reference), compared) for figure in result.figures]
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return text + "".join(f"\n{note}\n" for note in _notes(group))


def _row(figure: Figure, has_reference: bool, compared: bool) -> list[str]:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}x"
    met = {None: "", True: "yes", False: "**no**"}[figure.met]
    return [
        figure.label,
        *([show(figure.reference, figure.unit)] if has_reference else []),
        show(figure.configi, figure.unit),
        *([ratio] if compared else []),
        "" if figure.target is None else str(figure.target),
        met,
    ]


def _notes(group: list[Result]) -> Iterable[str]:
    for result in group:
        for note in result.notes:
            yield f"{result.title}: {note}" if len(group) > 1 else note
    if said := agreement(group):
        yield said
    for line in dict.fromkeys(result.setup.line() for result in group):
        yield f"Measured {line}."
