"""What a build takes for finished, after a kill, a restart of the machine, and a line that was cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantize.build.journal import Journal


def test_after_a_restart_of_the_machine_only_what_was_synced_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "journal"
    monkeypatch.setattr("quantize.build.journal.boot", lambda: "monday")
    journal = Journal(file, "build")
    for item in (4, 2):
        journal.add(item)
    journal.synced(2)
    journal.add(7)
    journal.close()
    assert done(file) == {2, 4, 7}
    monkeypatch.setattr("quantize.build.journal.boot", lambda: "tuesday")
    assert done(file) == {2, 4}
    assert done(file, "another build") == set()


@pytest.mark.parametrize("torn", ["", "done", "done 1", "syn", '{"build'])
def test_a_line_that_was_cut_off_says_nothing(tmp_path: Path, torn: str) -> None:
    journal = Journal(tmp_path / "journal", "build")
    journal.add(3)
    journal.close()
    with (tmp_path / "journal").open("a") as file:
        file.write(torn)
    assert done(tmp_path / "journal") == {3}


def done(file: Path, build: str = "build") -> set[int]:
    journal = Journal(file, build)
    journal.close()
    return set(journal.done)
