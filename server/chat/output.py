"""The token ids of one choice, as deltas: text, channels, stop strings, logprobs. Pure; HTTP process, on its loop.

A token passes through four steps. The token stream turns it into text; the channels sort that into text, reasoning and
tool calls; the finders of ends (stop strings, a lesser indentation), which see the text only, hold back or cut; and the
token's logprobs leave with the delta that carries the beginning of its text, whatever the channel. A token without text
of its own, such as a marker or the first bytes of a character, leaves with the delta of the text behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

from server.chat.channels import Channels, Piece, ReasoningPiece, TextOnly, TextPiece, ToolCallPiece
from server.chat.deltas import Delta, ReasoningDelta, ScoredToken, TextDelta, ToolCallDelta
from server.chat.indentation import IndentFinder
from server.chat.stops import StopFinder
from server.chat.tokenizers.offsets import left_by_others
from server.chat.tokenizers.vocabulary import Vocabulary
from server.engine_client.protocol import TokenLogprob


def token_text(vocabulary: Vocabulary, entry: TokenLogprob) -> ScoredToken:
    text, raw = vocabulary.token(entry.token)
    top = tuple((token, *vocabulary.token(token), logprob) for token, logprob in entry.top)
    return ScoredToken(entry.token, text, raw, entry.logprob, top)


class ChoiceOutput:
    """One choice of one request. After a stop string, and after `finish`, it is done.

    `channels` parse the markers of the model; None is a model without any. `prompt` is what the answer goes on from.
    Not `parallel`: the first call ends it. `min_indent` is that of its lines behind the first. `called`: a call was
    passed on whole. `reasoning_tokens`: how many tokens the thoughts took, with their markers.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        stop: tuple[str, ...],
        choice: int,
        want_logprobs: bool,
        channels: Channels | None = None,
        prompt: Sequence[int] = (),
        parallel: bool = True,
        min_indent: int = 0,
    ) -> None:
        self._vocabulary = vocabulary
        self._stream = vocabulary.stream(prompt)
        self._channels = channels or TextOnly()
        self._stops = StopFinder(stop)
        self._lines = IndentFinder(min_indent)
        self._choice = choice
        self._parallel = parallel
        self._scored = _ScoredTokens() if want_logprobs else None
        self.called = False
        self.reasoning_tokens = 0
        # Nothing is held back and nothing left out: the text of the tokens is the answer.
        self._plain = channels is None and not stop and not want_logprobs and not min_indent

    @property
    def stop_string(self) -> str | None:
        """The one that ended it."""
        return self._stops.met

    @property
    def outdented(self) -> bool:
        """Whether a line ended it, by its indentation."""
        return self._lines.stopped

    def push(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob]) -> tuple[list[Delta], bool]:
        """The deltas that `tokens` give, and whether the choice has ended with them, by a stop string or its only call:
        whatever is behind that is dropped."""
        if self._plain:
            text = "".join(map(self._stream.push, tokens))
            return [TextDelta(self._choice, text)] if text else [], False
        deltas: list[Delta] = []
        for index, token in enumerate(tokens):
            text = self._stream.push(token)
            if self._scored is not None:
                scored = token_text(self._vocabulary, logprobs[index])
                # A first space that is the spelling's alone is not in the answer.
                shown = text if scored.text == f" {text}" else scored.text
                self._scored.add(replace(scored, text=shown), len(text), left_by_others(scored.raw, text))
            thinking = self._channels.reasoning
            self._take(self._channels.push(token, text), deltas)
            self.reasoning_tokens += thinking or self._channels.reasoning
            if self._ended:
                break
        return deltas, self._ended

    def finish(self, cut: bool = False) -> list[Delta]:
        """The rest when generation has ended: held-back text, and U+FFFD for an incomplete character. `cut`: it ended
        for want of tokens."""
        deltas: list[Delta] = []
        if self._ended:
            return deltas
        self._take(self._channels.finish(self._stream.flush(), cut), deltas)
        if not self._ended:
            self._text(self._stops.flush(), deltas, last=True)
            if self._scored is not None and (rest := self._scored.rest()):
                _append(deltas, TextDelta(self._choice, "", rest))
        return deltas

    @property
    def _ended(self) -> bool:
        return self._stops.stopped or self._lines.stopped or (self.called and not self._parallel)

    def _take(self, pieces: Iterable[Piece], deltas: list[Delta]) -> None:
        for piece in pieces:
            if self._ended:
                return
            if isinstance(piece, TextPiece):
                if self._scored is not None:
                    self._scored.belong_to_text(piece.consumed, len(piece.text))
                self._text(self._stops.push(piece.text), deltas)
            else:
                # A stop string does not reach from one side of a thought or a call to the other.
                self._text(self._stops.flush(), deltas)
                tokens = self._scored.consumed(piece.consumed) if self._scored is not None else ()
                delta = self._delta(piece, tokens)
                self.called |= isinstance(piece, ToolCallPiece) and piece.ended
                if not isinstance(delta, ToolCallDelta) or delta.id or delta.arguments or tokens:
                    _append(deltas, delta)

    def _text(self, text: str, deltas: list[Delta], *, last: bool = False) -> None:
        text = self._lines.push(text)
        if last or self._stops.stopped:
            text += self._lines.flush()
        tokens = self._scored.sent(len(text)) if self._scored is not None else ()
        if text or tokens:
            _append(deltas, TextDelta(self._choice, text, tokens))

    def _delta(self, piece: ReasoningPiece | ToolCallPiece, tokens: tuple[ScoredToken, ...]) -> Delta:
        if isinstance(piece, ReasoningPiece):
            return ReasoningDelta(self._choice, piece.text, tokens)
        return ToolCallDelta(self._choice, piece.index, piece.id, piece.name, piece.arguments, tokens)


def _append(deltas: list[Delta], delta: Delta) -> None:
    """Neighbours of one channel are one delta; the pieces of a tool call stay apart."""
    last = deltas[-1] if deltas else None
    if isinstance(last, TextDelta | ReasoningDelta) and type(last) is type(delta):
        deltas[-1] = replace(last, text=last.text + delta.text, tokens=last.tokens + delta.tokens)
    else:
        deltas.append(delta)


class _ScoredTokens:
    """Tokens with their logprobs, each until the characters it begins with have left.

    A token first waits for a channel, by the offset of its first character in the whole answer. When that channel is
    the text it waits on, by the offset in the text, because the stop finder may hold the text back.
    """

    def __init__(self) -> None:
        self._made = 0
        self._consumed = 0
        self._text_made = 0
        self._text_sent = 0
        self._unsorted: deque[tuple[int, ScoredToken]] = deque()
        self._in_text: deque[tuple[int, ScoredToken]] = deque()

    def add(self, token: ScoredToken, length: int, others: int) -> None:
        """The next token, which completed `length` characters; it begins behind the first `others` of them."""
        self._unsorted.append((self._made, replace(token, offset=self._made + others)))
        self._made += length

    def consumed(self, count: int) -> tuple[ScoredToken, ...]:
        """The tokens that begin in the next `count` characters."""
        self._consumed += count
        return tuple(token for _, token in _before(self._unsorted, self._consumed))

    def belong_to_text(self, count: int, length: int) -> None:
        """The tokens of the next `count` characters, of which the last `length` are text, wait for that to be sent."""
        self._consumed += count
        first = self._consumed - length
        for start, token in _before(self._unsorted, self._consumed):
            self._in_text.append((self._text_made + max(0, start - first), token))
        self._text_made += length

    def sent(self, length: int) -> tuple[ScoredToken, ...]:
        """The tokens that begin in the next `length` characters of text."""
        self._text_sent += length
        return tuple(token for _, token in _before(self._in_text, self._text_sent))

    def rest(self) -> tuple[ScoredToken, ...]:
        rest = tuple(token for _, token in (*self._in_text, *self._unsorted))
        self._in_text.clear()
        self._unsorted.clear()
        return rest


def _before(waiting: deque[tuple[int, ScoredToken]], end: int) -> list[tuple[int, ScoredToken]]:
    """Take those that begin before `end` out of `waiting`."""
    taken = []
    while waiting and waiting[0][0] < end:
        taken.append(waiting.popleft())
    return taken
