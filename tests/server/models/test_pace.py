"""How fast a transfer is said to go, and how long it still takes; time is the test's own."""

from __future__ import annotations

import pytest

from quantize.pace import Pace, pace_text
from server.models.status import ModelStatus


def rates(*seen: tuple[float, int]) -> list[float | None]:
    """What is told when so much is done at such a time."""
    times = iter([at for at, _ in seen])
    pace = Pace(lambda: next(times))
    return [pace.rate(done) for _, done in seen]


def test_a_rate_is_told_after_a_second_and_is_that_of_the_last_ones() -> None:
    assert rates((0, 500), (0.5, 600), (1, 700), (10, 2500)) == [None, None, 200, 200]
    # Fast until 100 s, slow since: what was before the window is forgotten.
    told = rates(*((second, second * 100) for second in range(101)), *((100 + s, 10_000 + s) for s in range(1, 31)))
    assert (told[100], told[-1]) == (100, 1)


def test_what_stands_still_gets_slower_and_what_begins_again_begins_anew() -> None:
    assert rates((0, 0), (2, 200), (4, 200)) == [None, 100, 50]
    assert rates((0, 900), (2, 1000), (3, 0), (3.5, 100), (5, 400)) == [None, 50, None, None, 200]


@pytest.mark.parametrize(
    ("done", "total", "rate", "left"),
    [(30, 130, 10.0, 10.0), (30, None, 10.0, None), (0, 9, None, None), (1, 9, 0.0, None)],
)
def test_the_time_that_is_left_needs_a_rate_and_an_end(
    done: int, total: int | None, rate: float | None, left: float | None
) -> None:
    assert ModelStatus("m", "fetching", "", done, total, rate=rate).seconds_left == left


def test_steps_that_take_longer_than_the_window_have_a_rate_too() -> None:
    assert rates((0, 0), (60, 600), (120, 600), (200, 1400)) == [None, 10, 0, 10]


@pytest.mark.parametrize(
    ("rate", "left", "text"),
    [
        (None, None, ""),
        (0.0, None, ""),
        (2.5e6, None, ", 2.5 MB/s"),
        (2.5e6, 42.0, ", 2.5 MB/s, 42 s left"),
        (2.5e6, 1200.0, ", 2.5 MB/s, 20 min left"),
        (2.5e6, 14_400.0, ", 2.5 MB/s, 4 h left"),
    ],
)
def test_a_line_says_how_fast_it_goes_and_how_long_it_takes(rate: float | None, left: float | None, text: str) -> None:
    assert pace_text(rate, left) == text
    assert ModelStatus("m", "fetching", "half", 0, None, rate=rate).line == f"half{pace_text(rate, None)}"
