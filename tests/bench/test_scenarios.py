"""What scenarios make of the times that the client saw."""

from __future__ import annotations

from bench.scenarios.long_prompt import longest_gap


def test_the_longest_gap_starts_with_the_last_token_before_the_long_prompt() -> None:
    assert longest_gap(((-9.0, 1), (-1.0, 2), (3.0, 3), (4.0, 4))) == 4.0
