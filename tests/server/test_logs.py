"""The text log: one line a record, whatever is in it."""

from __future__ import annotations

import logging

from server.logs import TextFormatter

TITLE = "\x1b]0;X\x07"


def test_a_record_is_one_line_without_escape_sequences() -> None:
    record = logging.makeLogRecord({"msg": "model %s\n12:00:00 error   forged", "args": (TITLE,), "model": TITLE})
    line = TextFormatter().format(record)
    assert line.isprintable()
    assert line.count("\\x1b]0;X\\x07") == 2


def test_a_line_of_an_exception_cannot_pass_for_one_of_the_log() -> None:
    try:
        raise ValueError(f"{TITLE}\n12:00:00 error   forged")
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": (ValueError, error, error.__traceback__)})
    first, *rest = TextFormatter().format(record).splitlines()
    assert first.endswith(" failed")
    assert rest
    assert all(line.startswith("  ") and line.isprintable() for line in rest)
