"""Two kinds of picture, as SVG text: bars and lines. By hand, since the docs need nothing more. Pure.

A picture has its own light background, so that it can be read under a light and a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from bench.result import Curve, Points

_COLORS = {"configi": "#0b7285", "mlx_lm.server": "#e8590c"}
_OTHERS = ("#868e96", "#7048e8", "#2b8a3e")
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 60, 20, 64, 46
_HEIGHT = 340
_TICKS = 5
_LEGEND = 195


@dataclass(frozen=True, slots=True)
class Bar:
    """`value` and `target` are factors: 1 is as good as the other side."""

    label: str
    value: float
    target: float


def bars(title: str, rows: Sequence[Bar], low: float = 0.05) -> str:
    """One bar per row on a logarithmic axis, from 1 to its value, `low` at the least; a tick marks the target."""
    high = max([2.0, *(max(row.value, row.target) for row in rows)]) * 1.6
    left, step = 330, 26
    height = _TOP + step * len(rows) + _BOTTOM - 12

    def x(value: float) -> float:
        return left + (_WIDTH - _RIGHT - left) * math.log(max(value, low) / low) / math.log(high / low)

    parts = [_text(16, 40, "times as good (logarithmic); the black tick is what is wanted", color="#495057")]
    bottom = _TOP + step * len(rows)
    for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1):
        at = 10.0**power
        parts += [_line(x(at), _TOP - 6, x(at), bottom, "#dee2e6"), _text(x(at), bottom + 16, f"{at:g}x", "middle")]
    for number, row in enumerate(rows):
        y = _TOP + step * number
        start, end = sorted((x(1.0), x(row.value)))
        color = _COLORS["configi"] if row.value >= row.target else _COLORS["mlx_lm.server"]
        parts += [
            _text(left - 10, y + 15, row.label, "end"),
            f'<rect x="{start:.1f}" y="{y + 4}" width="{max(end - start, 1):.1f}" height="14" fill="{color}"/>',
            _text(_beyond(end, x(row.target)) + 5, y + 15, f"{row.value:.3g}x"),
            _line(x(row.target), y + 1, x(row.target), y + 21, "#000000", 2),
        ]
    return _picture(title, height, parts)


def lines(curve: Curve) -> str:
    """One line per side, linear axes from zero or from the least x."""
    everything = [point for points in curve.sides.values() for point in points]
    left = min(0.0, *(x for x, _ in everything)) if everything else 0.0
    right = max((x for x, _ in everything), default=1.0) or 1.0
    top = max((y for _, y in everything), default=1.0) * 1.05 or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - left) / (right - left), y / top
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in _round_ticks(0.0, top):
        _, y = place(0, tick)
        parts += [_line(_LEFT, y, _WIDTH - _RIGHT, y, "#dee2e6"), _text(_LEFT - 6, y + 4, f"{tick:g}", "end")]
    for tick in _round_ticks(left, right):
        x, y = place(tick, 0)
        parts += [_line(x, y, x, y + 4, "#495057"), _text(x, y + 17, f"{tick:g}", "middle")]
    parts += [_text(_WIDTH / 2, _HEIGHT - 10, curve.x, "middle"), _text(_LEFT - 40, _TOP - 12, curve.y)]
    parts += _series(curve.sides, place)
    return _picture(curve.title, _HEIGHT, parts)


def _beyond(end: float, tick: float) -> float:
    """Where a number may start that would be crossed by the tick of the target."""
    return max(end, tick) if tick - end < 50 else end


def _series(sides: Mapping[str, Points], place: Callable[[float, float], tuple[float, float]]) -> Iterable[str]:
    others = iter(_OTHERS)
    for number, (name, points) in enumerate(sides.items()):
        color = _COLORS.get(name) or next(others)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>'
        if len(points) <= 12:
            for point in points:
                x, y = place(*point)
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>'
        legend = _WIDTH - _RIGHT - _LEGEND * (len(sides) - number)
        yield _line(legend, 36, legend + 18, 36, color, 3)
        yield _text(legend + 24, 40, name)


def _round_ticks(low: float, high: float) -> list[float]:
    """About `_TICKS` round numbers between `low` and `high`."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{color}" stroke-width="{width:g}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", color: str = "#212529", size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{color}" font-size="{size}">{escape(text)}</text>'


def _picture(title: str, height: int, parts: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif">'
    )
    paper = f'<rect width="{_WIDTH}" height="{height}" rx="6" fill="#ffffff"/>'
    return "\n".join([head, paper, _text(16, 22, title, size=15), *parts, "</svg>"]) + "\n"
