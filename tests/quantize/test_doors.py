"""What others wrote, on its way to the terminal and to the disk."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from rich.table import Table

from quantize.console import DoorConsole
from quantize.errors import QuantizeError, SourceError
from quantize.foreign_json import read_json
from quantize.names import checked_commit, checked_name, checked_path, checked_sha256, distinct_names
from quantize.printable import LONGEST, printable
from quantize.progress import on_terminal

TITLE = "\x1b]0;X\x07"
HOSTILE = [TITLE, "\x9b31m", "a\rb", "\u202egnp.exe", "\u2066x", "\x00", "\x7f", "\ud800", "\u2028", "\ue000"]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_terminal_would_obey_or_hide_is_shown_as_an_escape(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert "\\" in shown


def test_text_of_every_script_and_its_emoji_stay_as_they_are() -> None:
    for text in ("naïve 東京 שלום", "👩\u200d💻", "a\u00a0b"):
        assert printable(text) == text
    assert printable("a\n\tb", lines=True) == "a\n\tb"
    assert printable("a\nb") == "a\\nb"


def test_what_is_long_is_cut() -> None:
    assert len(printable("x" * 10**6)) == LONGEST + 1
    assert len(SourceError("x" * 10**6).message) == LONGEST + 1


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("text", [*HOSTILE, "[/x]", "[bold]x", ":smile:"])
def test_the_console_shows_strings_as_they_are_in_lines_tables_and_bars(terminal: bool, text: str) -> None:
    out = io.StringIO()
    console = DoorConsole(file=out, width=200, force_terminal=terminal, color_system=None)
    console.print(text)
    table = Table("a")
    table.add_row(text)
    console.print(table)
    with on_terminal(console) as progress:
        progress("building", 1, 2, text)
    seen = out.getvalue()
    assert seen.count(printable(text)) >= 2
    # What rich itself sends moves the cursor and hides it.
    assert TITLE not in seen
    assert not any(char in seen for char in "\x07\x9b\u202e\u2066\x00\x7f\u2028")


def test_without_a_terminal_a_line_says_how_fast_it_goes_and_how_long_it_takes() -> None:
    out = io.StringIO()
    times = iter([0, 0, 60, 60])
    with on_terminal(DoorConsole(file=out, force_terminal=False), lambda: next(times)) as progress:
        progress("calibrating", 0, 400_000_000, "layer 1 of 4")
        progress("calibrating", 100_000_000, 400_000_000, "layer 2 of 4")
    assert out.getvalue().splitlines() == [
        "calibrating: layer 1 of 4 0%",
        "calibrating: layer 2 of 4 25%, 1.7 MB/s, 3 min left",
    ]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "C:x", "a\x00", "a\n", TITLE, "CON", "nul.txt", "x.", " x",
     "x" * 256, "\u202ex"],
)  # fmt: skip
def test_what_is_not_the_name_of_a_file_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match=r"cannot be the name of a file; refused\.$"):
        checked_name(name)


def test_names_and_paths_inside_a_folder_pass() -> None:
    for name in ("model-00001-of-00002.safetensors", ".gitattributes", "東京.json", "console.json"):
        assert checked_name(name) == name
    assert checked_path("refs/pr/1") == "refs/pr/1"
    for path in ("a//b", "/a", "a/../b", "a/"):
        with pytest.raises(SourceError):
            checked_path(path)


@pytest.mark.parametrize("value", ["", "../../x", "/tmp/x", "A" * 64, "a" * 63, None, 5, ["a"]])
def test_what_is_no_hash_is_refused(value: object) -> None:
    for check in (checked_sha256, checked_commit):
        with pytest.raises(SourceError, match="refused"):
            check(value)


def test_names_that_are_one_file_on_a_mac_are_refused() -> None:
    distinct_names(["a.json", "b.json", "a.json"])
    for other in ("CONFIG.json", "config.JSON"):
        with pytest.raises(SourceError, match="one file on many file systems"):
            distinct_names(["config.json", other])
    with pytest.raises(SourceError):
        distinct_names(["caf\u00e9", "cafe\u0301"])


@pytest.mark.parametrize(
    "text",
    {
        "deep": b"[" * 100_000,
        "deep and closed": b"[" * 500 + b"]" * 500,
        "many lists": b"[" + b"[[[]]]," * 10**6 + b"1]",
        "many numbers": b"[" + b"1," * 5_000_000 + b"1]",
        "long integers": b"[" + (b"9" * 4000 + b",") * 800 + b"1]",
        "not unicode": b'"\xff"',
    }.values(),
    ids=lambda text: str(text[:12]),
)
def test_json_that_no_model_has_is_one_error_at_once(text: bytes) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match=r"\S"):
        read_json(text)
    # Only against a hang: each took seconds to minutes, or was a RecursionError.
    assert time.process_time() - start < 10


def test_errors_carry_no_escape_sequence() -> None:
    assert QuantizeError(f"The shard {TITLE} is missing.").message == "The shard \\x1b]0;X\\x07 is missing."


def test_ordinary_json_is_read(tmp_path: Path) -> None:
    value = {"a": [1, -2.5e3, None, True, {"b": "ü"}], "big": 2**64 - 1}
    assert read_json(json.dumps(value).encode()) == value
