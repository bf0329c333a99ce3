"""The pictures of the docs: those of the results, whole, and of this page alone."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace

from bench.pictures import Bar, bars, lines, pictures, ratios, svg
from bench.report import ASSETS
from bench.result import Curve, Measured, Result, Row, Target, figures, results


def test_the_pictures_of_the_docs_are_those_of_the_results() -> None:
    made = pictures(results())
    assert made
    on_disk = {path.name: path.read_text(encoding="utf-8") for path in ASSETS.glob("bench-*.svg")}
    assert on_disk == made, "run `python -m bench.report`"
    for text in made.values():
        ElementTree.fromstring(text)


def test_a_curve_is_drawn_point_by_point_from_zero() -> None:
    curve = Curve("c", "t", "x", "y", {"configi": ((0.0, 3.0), (1.5, 2.0)), "other": ((1.0, 9.0),)})
    [axes] = lines(curve).axes
    drawn = {line.get_label(): tuple(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}
    assert (drawn, axes.get_ylim()[0]) == (curve.sides, 0)


def test_a_bar_goes_from_1_to_its_ratio_and_more_is_better(result: Callable[..., Result]) -> None:
    rows = (
        Row("gap", "longest gap", "s", Target(0.1)),
        Row("share", "share", "", Target(0.9, True, absolute=True)),
        Row("speed", "speed", "tok/s", Target(0.97, True)),
    )
    sides = Measured({"gap": 10.0, "share": 0.5, "speed": 4.0}), Measured({"gap": 2.5, "share": 0.9, "speed": 2.0})
    shown = replace(result(gap=1.0, share=1.0), scenario="one_stream", figures=figures(rows, *sides))
    compared = list(ratios({"one_stream": shown}))
    # What is judged by itself alone, as the share, has no ratio to show.
    assert compared == [Bar("one stream: longest gap", 4.0, 10.0), Bar("one stream: speed", 0.5, 0.97)]
    [axes] = bars("t", compared).axes
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches] == [(1, 4.0), (1, 0.5)]
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[10.0, 10.0], [0.97, 0.97]]


def test_a_very_bad_ratio_is_not_cut_off_and_a_side_without_points_is_no_error() -> None:
    [axes] = bars("t", [Bar("bad", 0.01, 20.0)]).axes
    assert axes.get_xlim()[0] < 0.01 < 20.0 < axes.get_xlim()[1]
    assert svg(lines(Curve("c", "t", "x", "y", {"configi": ()})))


def test_a_picture_has_colors_for_a_dark_page_and_loads_nothing() -> None:
    picture = svg(bars("t", [Bar("one", 2.0, 1.0)]))
    assert "prefers-color-scheme: dark" in picture
    assert not re.search(r"""(?:href|src)="(?!#)|url\((?!#)|@import""", picture)
