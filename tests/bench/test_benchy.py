"""llama-benchy as it is asked and read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import benchy
from bench.scenario import Side
from bench.sse import NoAnswer
from tests.support.tiny_model import write_tiny_model

# Stands in for llama-benchy: reads the book, writes a report.
BENCHY_SCRIPT = """
import json, sys, urllib.error, urllib.request
given = dict(zip(sys.argv, sys.argv[1:]))
try:
    book = urllib.request.urlopen(given["--book-url"]).read()
except urllib.error.HTTPError:
    sys.exit("the book is gone")
json.dump({"words": len(book.split())}, open(given["--save-result"], "w"))
"""


def test_llama_benchy_gets_a_book_and_its_report_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "peers" / "llama-benchy" / "bin" / "llama-benchy"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\n{BENCHY_SCRIPT}")
    program.chmod(0o755)
    monkeypatch.setenv("CONFIGI_BENCH_PEERS", str(tmp_path / "peers"))
    side = Side("configi", write_tiny_model(tmp_path / "model"), tmp_path)
    with benchy.book(side) as address:
        assert benchy.asked(side, ["--book-url", address])["words"] > 1000
        with pytest.raises(NoAnswer, match="the book is gone"):
            benchy.asked(side, ["--book-url", f"{address}/none"])


def test_what_llama_benchy_measures_has_a_row_each() -> None:
    labels = [row.label for row in benchy.scenario(2048, 128, [0, 4096]).rows]
    assert labels[::2] == [
        "alone: time to first token",
        "reading 4,096 tokens ahead: time to first token",
        "behind 4,096 tokens: time to first token",
    ]
