"""Where a text ends by the indentation of its lines, however it is cut into pieces."""

from __future__ import annotations

import pytest

from server.chat.indentation import IndentFinder


def shown(least: int, *pieces: str) -> tuple[str, bool]:
    finder = IndentFinder(least)
    text = "".join(finder.push(piece) for piece in pieces)
    return text + finder.flush(), finder.stopped


@pytest.mark.parametrize(
    ("least", "text", "kept"),
    [
        (4, "x = 1\n    y = 2\nz", "x = 1\n    y = 2\n"),
        (4, "x\n\n    y", "x\n"),
        (2, "x\n\t\ty\n ", "x\n\t\ty\n "),
        (1, "x\n y\nz\n a", "x\n y\n"),
        (0, "x\ny\n\nz", "x\ny\n\nz"),
        (4, "nothing ends it", "nothing ends it"),
        (4, "\n    x\n  y", "\n    x\n"),
        (2, "x\n    deeper\n  y", "x\n    deeper\n  y"),
    ],
)
def test_a_line_that_is_indented_by_less_ends_it(least: int, text: str, kept: str) -> None:
    assert shown(least, text) == (kept, kept != text)
    assert shown(least, *text) == (kept, kept != text)
    assert shown(least, text[:3], text[3:]) == (kept, kept != text)


def test_what_may_still_be_a_margin_is_held_back() -> None:
    finder = IndentFinder(4)
    assert [finder.push(piece) for piece in ("x\n", "  ", "  y")] == ["x\n", "", "    y"]
