"""How much may be written is pure: a clock and bytes in, yes or no out."""

from __future__ import annotations

from server.engine.prefixes.allowance import Allowance


def test_an_hour_has_so_many_bytes_and_then_they_come_back_evenly() -> None:
    now = [0.0]
    allowance = Allowance(3600, lambda: now[0])
    assert allowance.take(3000)
    assert not allowance.take(601)
    assert allowance.take(600)
    now[0] = 100
    assert not allowance.take(101)
    assert allowance.take(100)
    now[0] = 10**6
    assert not allowance.take(3601)
    assert allowance.take(3600)


def test_none_may_be_written_where_none_is_allowed() -> None:
    assert not Allowance(0).take(1)
