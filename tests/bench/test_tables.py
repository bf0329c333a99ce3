"""The tables of the docs."""

from __future__ import annotations

from collections.abc import Callable

from bench.result import Result
from bench.tables import tables


def test_a_table_shows_both_sides_the_ratio_and_what_was_missed(result: Callable[..., Result]) -> None:
    shown = result(gap=2.0, share=0.95)
    table = tables({"running_stream": shown})["bench-serving"]
    assert "| longest gap | 10 s | 2 s | 0.20x | ≤ 0.1x | **no** |" in table
    assert "| share | 0.5 | 0.95 |  | ≥ 0.9 | yes |" in table
    assert shown.setup.line() in table


def test_what_was_not_measured_says_so() -> None:
    assert set(tables({}).values()) == {"Not measured yet.\n"}
