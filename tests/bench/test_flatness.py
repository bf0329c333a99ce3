"""Whether what a process holds settles or grows."""

from __future__ import annotations

import pytest

from bench.flatness import Sample, growths


def samples(*rss: int, files: int = 10) -> list[Sample]:
    return [Sample(at, mib * 2**20, files, 5) for at, mib in enumerate(rss)]


def test_memory_that_settles_is_flat_and_memory_that_keeps_growing_is_not() -> None:
    settled, growing = growths(samples(50, 70, 100, 101, 102, 101)), growths(samples(50, 70, 100, 120, 140, 160))
    assert [growth.flat for growth in settled] == [True, True, True]
    assert [growth.flat for growth in growing] == [False, True, True]


def test_one_more_open_file_is_a_leak() -> None:
    leaking = samples(100, 100, 100, 100) + samples(100, 100, files=11)
    assert [growth.what for growth in growths(leaking) if not growth.flat] == ["open files"]


def test_too_few_samples_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="5 samples are too few"):
        growths(samples(1, 2, 3, 4, 5))
