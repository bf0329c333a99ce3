"""How well probabilities were meant."""

from __future__ import annotations

import pytest

from bench.reliability import Judged, brier, reliability


def test_sure_and_right_scores_nothing_and_sure_and_wrong_scores_one() -> None:
    assert brier([Judged((1.0, 0.0), 0), Judged((0.0, 1.0), 1)]) == 0
    assert brier([Judged((1.0, 0.0), 1)]) == 1
    assert brier([Judged((0.5, 0.5), 0), Judged((0.25, 0.25, 0.25, 0.25), 0)]) == pytest.approx(
        (0.25 + 0.75**2 + 3 * 0.25**2) / 5
    )


def test_a_point_of_reliability_is_what_was_said_and_how_often_it_was_so() -> None:
    said = [Judged((0.62, 0.38), 0)] * 9 + [Judged((0.68, 0.32), 1)] * 3 + [Judged((0.1, 0.9), 1)]
    [(probability, so)] = reliability(said)
    assert (probability, so) == (pytest.approx((9 * 0.62 + 3 * 0.68) / 12), 0.75)
