"""How much may be written is pure: a clock and bytes in, yes or no out."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_what_an_earlier_process_has_written_counts(tmp_path: Path) -> None:
    now, memory = [0.0], tmp_path / "hour"
    assert Allowance(3600, lambda: now[0], memory).take(3000)
    later = Allowance(3600, lambda: now[0], memory)
    assert not later.take(601)
    now[0] = 400.0
    assert later.take(1000)
    assert not Allowance(3600, lambda: now[0], memory).take(1)
    assert memory.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [memory]


def test_processes_that_run_at_once_share_it(tmp_path: Path) -> None:
    one, other = (Allowance(3600, lambda: 0.0, tmp_path / "hour") for _ in range(2))
    assert [each.take(1000) for each in (one, other, one, other)] == [True, True, True, False]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '["a", 2]', "[1, 2, 3]", "[null, null]"])
def test_a_damaged_memory_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "hour").write_text(text)
    assert Allowance(10, lambda: 0.0, tmp_path / "hour").take(10)


def test_a_planted_link_is_neither_read_nor_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("[0, 0]")
    (tmp_path / "hour").symlink_to(tmp_path / "elsewhere")
    assert Allowance(10, lambda: 0.0, tmp_path / "hour").take(10)
    assert (tmp_path / "elsewhere").read_text() == "[0, 0]"
    assert not (tmp_path / "hour").is_symlink()


def test_where_it_cannot_be_remembered_it_holds_for_the_process(tmp_path: Path) -> None:
    allowance = Allowance(10, lambda: 0.0, tmp_path / "gone" / "hour")
    assert [allowance.take(6), allowance.take(6)] == [True, False]
