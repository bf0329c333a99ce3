"""Stop strings: where a text that comes in pieces has to end, and what of it must wait until that is certain. Pure."""

from __future__ import annotations


class StopFinder:
    """Ends a text before the stop string that is complete first; of several complete at once, the longest.

    The outcome does not depend on how the text is cut into pieces.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._first = frozenset(text[0] for text in stop)
        self._held = ""
        self.idle = not stop
        # The stop string that ended the text.
        self.met: str | None = None

    @property
    def stopped(self) -> bool:
        return self.met is not None

    def push(self, text: str) -> str:
        """What of the text so far is certain not to be part of a stop string, beyond what was returned before."""
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.met = min(found)
            self._held = ""
            return text[:at]
        keep = self._beginning(text)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Where the longest end of `text` that begins a stop string starts. It contains no complete stop string."""
        for at, character in enumerate(text):
            if character in self._first:
                tail = text[at:]
                if any(stop.startswith(tail) for stop in self._stop):
                    return at
        return len(text)
