"""Ends a text that comes in pieces before a line that is indented by less than it should be. Pure."""

from __future__ import annotations

_SPACE = " \t"


class IndentFinder:
    """The first line is where it is; every line behind it must begin with `least` spaces and tabs, an empty one too."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._held = ""
        self._in_margin = False
        self.stopped = False

    def push(self, text: str) -> str:
        """What of the text so far is certain to stay, beyond what was returned before."""
        if not self._least or self.stopped:
            return "" if self.stopped else text
        text, self._held = self._held + text, ""
        shown = []
        while text:
            if not self._in_margin:
                line, newline, text = text.partition("\n")
                shown.append(line + newline)
                self._in_margin = bool(newline)
                continue
            margin = len(text) - len(text.lstrip(_SPACE))
            if margin >= self._least:
                self._in_margin = False
            elif margin < len(text):
                self.stopped = True
                break
            else:
                self._held, text = text, ""
        return "".join(shown)

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held
