"""How a worker process reports."""

from __future__ import annotations

import io
import json
import os

from quantize.worker import JsonLines


def test_a_report_is_a_few_lines_a_second_and_the_last_one_is_never_left_out() -> None:
    out = io.StringIO()
    report = JsonLines(out)
    for done in range(1001):
        report("fetching", done, 1000, "")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert lines[0]["done"] == 0
    assert lines[-1]["done"] == 1000
    assert len(lines) < 10


def test_a_report_that_was_held_back_is_told_when_nothing_newer_comes() -> None:
    read, write = os.pipe()
    with os.fdopen(read) as lines, os.fdopen(write, "w") as out:
        report = JsonLines(out)
        for done in (1, 2, 3):
            report("fetching", done, 1000, "")
        assert [json.loads(lines.readline())["done"] for _ in range(2)] == [1, 3]


def test_a_report_quotes_no_more_than_a_line_holds() -> None:
    out = io.StringIO()
    report = JsonLines(out)
    report("fetching", 0, None, "a" * 3 * 10**6)
    report.error("é" * 3 * 10**6, retryable=False)
    assert all(len(line) < 2**16 for line in out.getvalue().splitlines())
