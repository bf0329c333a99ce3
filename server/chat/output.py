"""Token ids of one choice to `TextDelta` events: detokenizing, stop strings, logprobs. Pure; HTTP process, on its loop.

A token passes three stations: the token stream makes text of it, the stop finder holds back or cuts, and the logprobs
wait until the text that they belong to is out. A parser of reasoning and tool calls fits between the first two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from server.chat.deltas import ScoredToken, TextDelta
from server.chat.tokenizer import ChatTokenizer
from server.engine_client.protocol import TokenLogprob


def token_text(tokenizer: ChatTokenizer, entry: TokenLogprob) -> ScoredToken:
    text, raw = tokenizer.token(entry.token)
    top = tuple((token, *tokenizer.token(token), logprob) for token, logprob in entry.top)
    return ScoredToken(entry.token, text, raw, entry.logprob, top)


class ChoiceOutput:
    """One choice of one request. After a stop string, and after `finish`, it is done."""

    def __init__(self, tokenizer: ChatTokenizer, stop: tuple[str, ...], choice: int, want_logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._stream = tokenizer.stream()
        self._stops = StopFinder(stop)
        self._choice = choice
        self._want_logprobs = want_logprobs
        # Characters made by the stream and let through by the stop finder, since the start.
        self._made = 0
        self._sent = 0
        # Tokens with the offset of their first character, until that is sent.
        self._waiting: deque[tuple[int, ScoredToken]] = deque()

    def push(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob]) -> tuple[TextDelta | None, bool]:
        """The event that `tokens` give, if any, and whether a stop string was met: then the choice has ended, and
        whatever is behind it is dropped."""
        parts = []
        for index, token in enumerate(tokens):
            if self._want_logprobs:
                self._waiting.append((self._made, token_text(self._tokenizer, logprobs[index])))
            text = self._stream.push(token)
            self._made += len(text)
            if self._stops.idle:
                parts.append(text)
                continue
            parts.append(self._stops.push(text))
            if self._stops.stopped:
                break
        return self._event("".join(parts), last=False), self._stops.stopped

    def finish(self) -> TextDelta | None:
        """The rest when generation has ended: held-back text, and U+FFFD for an incomplete character."""
        if self._stops.stopped:
            return None
        text = self._stops.push(self._stream.flush()) + self._stops.flush()
        return self._event(text, last=not self._stops.stopped)

    def _event(self, text: str, *, last: bool) -> TextDelta | None:
        if not self._want_logprobs:
            return TextDelta(self._choice, text) if text else None
        self._sent += len(text)
        ready = []
        while self._waiting and (last or self._waiting[0][0] < self._sent):
            ready.append(self._waiting.popleft()[1])
        return TextDelta(self._choice, text, tuple(ready)) if text or ready else None


class StopFinder:
    """Ends a text before the stop string that is complete first; of several complete at once, the longest.

    The outcome does not depend on how the text is cut into pieces.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._first = frozenset(text[0] for text in stop)
        self._held = ""
        self.idle = not stop
        self.stopped = False

    def push(self, text: str) -> str:
        """What of the text so far is certain not to be part of a stop string, beyond what was returned before."""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        keep = self._beginning(text)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Where the longest end of `text` that begins a stop string starts. No stop string is whole in it."""
        for at, character in enumerate(text):
            if character in self._first:
                tail = text[at:]
                if any(stop.startswith(tail) for stop in self._stop):
                    return at
        return len(text)
