"""bench/results/ as tables of the docs; tests/project/ holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from bench.result import SERVING, SLIDING, Figure, Result, agreement, peers_of, show

# Table -> the results in it, in this order.
TABLES: Mapping[str, tuple[str, ...]] = {
    "bench-serving": SERVING,
    "bench-sliding": SLIDING,
    "bench-equal-gap": ("equal_gap", "sliding_equal_gap"),
    "bench-benchy": ("llama_benchy",),
    "bench-floor": ("throughput", "prompt_length"),
    "bench-simulated": ("simulated-m4-max", "simulated-m2-pro", "simulated-m1"),
    "bench-overhead": ("overhead",),
    "bench-host": ("host",),
    "bench-soak": ("soak",),
    "bench-hostile": ("hostile",),
    "bench-decisions": ("decisions",),
    "bench-reliability": ("reliability",),
}


def tables(measured: Mapping[str, Result]) -> dict[str, str]:
    """Every table by its name; what was not measured is not in it."""
    return {name: _table([measured[n] for n in names if n in measured]) for name, names in TABLES.items()}


def _table(group: list[Result]) -> str:
    if not group:
        return "Not measured yet.\n"
    reference = group[0].reference
    # Nobody to compare with: then there is no ratio either.
    compared = any(figure.ratio is not None for result in group for figure in result.figures)
    peers = peers_of(group)
    head = ["", *([reference] if reference else []), *peers, "configi"]
    head += [*(["Ratio"] if compared else []), "Wanted", "Met"]
    rows = [head, ["---"] * len(head)]
    for result in group:
        rows.append([f"**{result.title}**", *[""] * (len(head) - 1)])
        rows += [_row(figure, bool(reference), peers, compared) for figure in result.figures]
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return text + "".join(f"\n{note}\n" for note in _notes(group))


def _row(figure: Figure, has_reference: bool, peers: Sequence[str], compared: bool) -> list[str]:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}x"
    met = {None: "", True: "yes", False: "**no**"}[figure.met]
    return [
        figure.label,
        *([show(figure.reference, figure.unit)] if has_reference else []),
        *(show(figure.peers.get(peer), figure.unit) for peer in peers),
        show(figure.configi, figure.unit),
        *([ratio] if compared else []),
        "" if figure.target is None else str(figure.target),
        met,
    ]


def _notes(group: list[Result]) -> Iterable[str]:
    notes = Counter(note for result in group for note in result.notes)
    yield from (note for note, times in notes.items() if times > 1)
    for result in group:
        for note in result.notes:
            if notes[note] == 1:
                yield f"{result.title}: {note}" if len(group) > 1 else note
    if said := agreement(group):
        yield said
    for line in dict.fromkeys(result.setup.line() for result in group):
        yield f"Measured {line}."
