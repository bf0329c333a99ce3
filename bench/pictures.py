"""The pictures of docs/performance.md: curves over time or size, and the ratios of every scenario. Drawn by matplotlib.

The same results give the same bytes: fixed settings, salted ids, no date. Text stays text, and a style sheet swaps
paper, ink and grid where the reader's page is dark.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure as Drawing

from bench.result import SERVING, Curve, Figure, Result

_PAPER, _INK, _FAINT, _GRID = "#ffffff", "#212529", "#596068", "#dee2e6"
_DARK = {_PAPER: "#1f2328", _INK: "#e6e8eb", _FAINT: "#a5adb5", _GRID: "#3d444d"}
# Readable on either paper. The others are for sides that have no color of their own.
_COLORS = {"configi": "#1098ad", "mlx_lm.server": "#e8590c"}
_OTHERS = ("#868e96", "#7950f2", "#37b24d", "#d6336c")
# Points that can be told apart are marked; a line of more is a line.
_MARKED = 12
# Over the defaults, whatever a matplotlibrc of the user's says.
_STYLE: list[str | Path | dict[str, Any]] = [
    "default",
    {
        "svg.hashsalt": "configi",
        "svg.fonttype": "none",
        "font.family": ["DejaVu Sans", "sans-serif"],
        "font.size": 9,
        "text.color": _INK,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _FAINT,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.titlepad": 26,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "figure.facecolor": _PAPER,
        "figure.constrained_layout.w_pad": 0.12,
        "figure.constrained_layout.h_pad": 0.1,
        "axes.facecolor": _PAPER,
        "grid.color": _GRID,
        "xtick.color": _FAINT,
        "ytick.color": _FAINT,
        "legend.frameon": False,
    },
]


@dataclass(frozen=True, slots=True)
class Bar:
    """`value` and `target` are factors: 1 is as good as the other side, more is better."""

    label: str
    value: float
    target: float


def pictures(measured: Mapping[str, Result]) -> dict[str, str]:
    """Every picture, as SVG, by its file name."""
    made = {f"bench-{c.name}.svg": svg(lines(c)) for result in measured.values() for c in result.curves}
    if rows := list(ratios(measured)):
        made["bench-ratios.svg"] = svg(bars("configi against mlx_lm.server", rows))
    return made


def ratios(measured: Mapping[str, Result]) -> Iterator[Bar]:
    """What was compared and has a target, in the order of the table."""
    for result in (measured[name] for name in SERVING if name in measured):
        for figure in result.figures:
            if figure.ratio and figure.target is not None and figure.unit:
                yield _bar(result, figure, figure.ratio, figure.target.bound, figure.target.at_least)


def _bar(result: Result, figure: Figure, ratio: float, bound: float, more_is_better: bool) -> Bar:
    label = f"{result.scenario.replace('_', ' ')}: {figure.label.partition(':')[0]}"
    return Bar(label, ratio, bound) if more_is_better else Bar(label, 1 / ratio, 1 / bound)


def lines(curve: Curve) -> Drawing:
    """One line per side, on linear axes; y starts at zero."""
    with style.context(_STYLE):
        drawing = Drawing(figsize=(7.2, 3.6), layout="constrained")
        axes = drawing.add_subplot()
        others = iter(_OTHERS)
        for name, points in curve.sides.items():
            marker = "o" if len(points) <= _MARKED else None
            x, y = [x for x, _ in points], [y for _, y in points]
            axes.plot(x, y, label=name, color=_COLORS.get(name) or next(others), marker=marker, markersize=4)
        axes.set(title=curve.title, xlabel=curve.x, ylabel=curve.y)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
        axes.grid(axis="y")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(curve.sides))
        return drawing


def bars(title: str, rows: Sequence[Bar]) -> Drawing:
    """One bar per row on a logarithmic axis, from 1 to its value; a tick marks the target."""
    with style.context(_STYLE):
        drawing = Drawing(figsize=(7.2, 1.1 + 0.28 * len(rows)), layout="constrained")
        axes = drawing.add_subplot()
        axes.set_xscale("log")
        for place, row in enumerate(rows):
            color = _COLORS["configi" if row.value >= row.target else "mlx_lm.server"]
            axes.barh(place, row.value - 1, left=1, height=0.55, color=color)
            axes.plot([row.target] * 2, [place - 0.42, place + 0.42], color=_INK, linewidth=2)
            axes.annotate(
                f"{row.value:.3g}x",
                (max(row.value, row.target, 1), place),
                (5, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=_INK)
        axes.invert_yaxis()
        shown = [0.8, 2.0, *(factor for row in rows for factor in (row.value, row.target))]
        # Room on the right for the last number.
        axes.set_xlim(min(shown) / 1.6, max(shown) * 1.6)
        axes.xaxis.set_major_formatter("{x:g}x")
        axes.grid(axis="x")
        axes.set_title(title)
        axes.text(0, 1.02, "times as good; the tick is what is wanted", color=_FAINT, transform=axes.transAxes)
        return drawing


def svg(drawing: Drawing) -> str:
    """`drawing` as SVG text with both color schemes; the same drawing gives the same text."""
    file = io.StringIO()
    with style.context(_STYLE):
        drawing.savefig(file, format="svg", metadata={"Date": None})
    swaps = "".join(
        f'[style*="{name}: {light}"]{{{name}:{dark} !important}}'
        for light, dark in _DARK.items()
        for name in ("fill", "stroke")
    )
    sheet = f"<style>@media (prefers-color-scheme: dark){{{swaps}}}</style>"
    lines = file.getvalue().replace("</svg>", f"{sheet}\n</svg>").splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"
