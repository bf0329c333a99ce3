"""The one door to the terminal: all that is printed passes it, for a name in a model file may be an escape sequence.

Nothing that leaves here moves a cursor, sets a title, hides text or turns its direction, is read as markup, or has no
end. What is laid out, in tables and bars, goes through console.py. tests/project/test_doors.py finds what goes around
both.
"""

from __future__ import annotations

import json
import sys
import unicodedata

# Longer than any sentence that is written here; shorter than what would bury it.
LONGEST = 2000
# Control and format characters, halves of pairs, private and unassigned ones, separators of lines and paragraphs.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# They join the parts of an emoji or of a word, and do nothing else.
_JOINERS = "\u200c\u200d"


def printable(text: str, *, limit: int = LONGEST, lines: bool = False) -> str:
    """`text` with what a terminal would obey or hide written as an escape, cut at `limit` characters.

    `lines` leaves line ends and tabs as they are.
    """
    if len(text) > limit:
        text = f"{text[:limit]}…"
    if text.isprintable():
        return text
    kept = f"{_JOINERS}\n\t" if lines else _JOINERS
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _HIDDEN and char not in kept else char
        for char in text
    )


def echo(text: str, *, err: bool = False, limit: int = LONGEST) -> None:
    """One line, or several, on stdout or stderr."""
    print(printable(text, limit=limit, lines=True), file=sys.stderr if err else sys.stdout)


def print_json(value: object) -> None:
    """In ASCII, so that whatever its strings hold is an escape already."""
    print(json.dumps(value, indent=2))
