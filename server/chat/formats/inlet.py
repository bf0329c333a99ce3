"""Where a parser of an answer reads: what has come of it, in the order in which it came. Pure.

A parser is a generator that yields when it needs more, so that it reads like one of a whole text; and what it finds
does not depend on how the text is cut. The end of the answer is the empty string where a symbol was to be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeVar

from server.chat.formats.symbols import Symbols

T = TypeVar("T")
Steps = Generator[None, None, T]

SPACE = " \t\r\n"


class Broken(Exception):
    """What was read is no call."""


class Cut(Exception):
    """The answer ended for want of tokens in the middle of a call."""


class Stops:
    """Texts to read up to."""

    def __init__(self, *texts: str) -> None:
        self._texts = tuple(sorted({text for text in texts if text}, key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self._texts)) or r"(?!)")
        self._first = frozenset(text[0] for text in self._texts)
        self._longest = max(map(len, self._texts), default=0)

    def find(self, text: str, ended: bool) -> tuple[int, str]:
        """How many symbols of `text` are certainly before any of the texts; and which stands there, if that is certain.

        The one that begins first counts, then the longest.
        """
        found = self._pattern.search(text)
        limit = found.start() if found else len(text)
        if not ended:
            for at in range(max(0, len(text) - self._longest + 1), min(limit + 1, len(text))):
                if text[at] in self._first and self._may_become(text[at:]):
                    return at, ""
        return limit, found[0] if found else ""

    def _may_become(self, tail: str) -> bool:
        return any(len(text) > len(tail) and text.startswith(tail) for text in self._texts)


class Inlet:
    """`ended`: nothing more comes; `cut`: for want of tokens. `consumed` counts characters of the answer, as `Channels`
    does, since it was last set to 0."""

    def __init__(self, symbols: Symbols) -> None:
        self.symbols = symbols
        self.ended = False
        self.cut = False
        self.consumed = 0
        self._text = ""
        self._at = 0
        self._recorded: list[str] | None = None

    def feed(self, text: str) -> None:
        self._text = self._text[self._at :] + text
        self._at = 0

    def record(self) -> None:
        """Remember what is taken from now on."""
        self._recorded = []

    def recorded(self) -> str:
        """What was taken since, which is forgotten."""
        taken, self._recorded = "".join(self._recorded or ()), None
        return taken

    def take(self, count: int) -> str:
        taken = self._text[self._at : self._at + count]
        self._at += len(taken)
        self.consumed += len(self.symbols.shown(taken))
        if self._recorded is not None:
            self._recorded.append(taken)
        return taken

    @property
    def unread(self) -> str:
        return self._text[self._at :]

    def more(self) -> Steps[bool]:
        """Wait for a symbol; False at the end of the answer."""
        while self._at == len(self._text):
            if self.ended:
                return False
            yield
        return True

    def peek(self) -> Steps[str]:
        """The next symbol, which stays."""
        return self._text[self._at] if (yield from self.more()) else ""

    def skip(self, characters: str = SPACE) -> Steps[str]:
        """Take all the next symbols that are among `characters`."""
        skipped = ""
        while (yield from self.more()) and self._text[self._at] in characters:
            skipped += self.take(1)
        return skipped

    def accept(self, *texts: str) -> Steps[str]:
        """Take the longest of `texts` that comes next, if one does."""
        while True:
            unread = self.unread
            waits = any(len(text) > len(unread) and text.startswith(unread) for text in texts)
            if not waits or self.ended:
                best = max((text for text in texts if unread.startswith(text)), key=len, default="")
                return self.take(len(best))
            yield

    def starts(self, *texts: str) -> Steps[bool]:
        """Whether one of `texts` comes next, which stays."""
        while True:
            unread = self.unread
            if any(unread.startswith(text) for text in texts):
                return True
            if self.ended or not any(text.startswith(unread) for text in texts):
                return False
            yield

    def until(self, stops: Stops, emit: Callable[[str], None], hold: str = "") -> Steps[tuple[str, str]]:
        """Pass on what comes before the next of `stops`, which stays unread and is returned; "" at the answer's end.

        `hold`: characters that are not passed on but returned, first, where they stand last.
        """
        while True:
            unread = self.unread
            # Of a call that was cut, only what is certain is passed on.
            cut_call = self.cut and self._recorded is not None
            count, stop = stops.find(unread, self.ended and not cut_call)
            certain = len(unread[:count].rstrip(hold)) if hold else count
            if certain:
                emit(self.take(certain))
            if stop or self.ended:
                return self.take(count - certain), stop
            yield
