"""What one answer may draw next: by grammar, thought, ends, allowed and banned tokens. Runs in the engine process.

A steering is told each token of its answer and rules out tokens for the next draw. All of it happens on the host, while
the forward pass runs: see `masks`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np
from llguidance import LLMatcher
from llguidance.numpy import fill_next_token_bitmask

from server.engine.device.failures import Failure, explain
from server.engine.steering.bits import Bits, allow, bits_of, forbid
from server.engine.steering.tokens import GrammarError, SpelledTokens, Watch
from server.engine_client.protocol import Generate

log = logging.getLogger("configi.engine")

T = TypeVar("T")

# What a mask may take, about a forward pass of a large model; the rows beside it wait for what it takes beyond. An
# answer's masks may take so much beyond, all together.
MASK_S, _BEYOND_S = 0.02, 0.5

_NOTHING_LEFT = "Nothing may follow: the grammar, the allowed and the banned tokens of this request exclude each other."


def needs_steering(request: Generate) -> bool:
    sampling = request.sampling
    return bool(
        request.grammar or request.thought or request.min_tokens or sampling.banned or sampling.allowed is not None
    )


class Steering:
    """`matcher` stands at the beginning of the request's grammar, if it has one. `failed` says what ends the request
    with an error, `complete` that the answer cannot go on."""

    def __init__(self, request: Generate, tokens: SpelledTokens | None, matcher: LLMatcher | None, width: int) -> None:
        self.failed: Failure | None = None
        self.complete = False
        # Its masks are to be timed one by one.
        self.slow = False
        self._beyond_s = 0.0
        self._request = request
        self._width = width
        self._drawn: list[int] = []
        self._stops = frozenset(request.stop_tokens)
        self._allowed = None if request.sampling.allowed is None else bits_of(request.sampling.allowed, width)
        self._forced: deque[int] = deque()
        self._state: Literal["free", "thinking", "held"] = "free"
        if tokens is not None:
            self._start(request, tokens, matcher)

    def _start(self, request: Generate, tokens: SpelledTokens, matcher: LLMatcher | None) -> None:
        grammar, thought = request.grammar, request.thought
        self._tokens = tokens
        # Copied for each use: a lazy grammar is used more than once.
        self._grammar = matcher
        self._lazy = grammar is not None and bool(grammar.opening)
        self._matcher: LLMatcher | None = None
        self._openings = [tokens.coded(text) for text in grammar.opening] if grammar else []
        begin = [tokens.coded(thought.begin)] if thought else []
        self._watch = Watch(tokens, [*self._openings, *begin])
        self._end = Watch(tokens, [tokens.coded(thought.end)] if thought else [])
        # Of all thoughts of the answer together.
        self._thought_tokens = 0
        # Whether what is forced ends with the thought's closing.
        self._closing = False
        # A held answer may still begin with a thought.
        self._begin = tokens.spell(begin[0]) if begin and not (thought and thought.open) else []
        if thought and thought.open:
            self._think()
        else:
            self._answer()

    @property
    def matcher(self) -> LLMatcher | None:
        """The one that fills the next mask, before `rule_out`."""
        return self._matcher if self._state == "held" and not self._forced else None

    @property
    def restricts(self) -> bool:
        """Whether anything is ruled out for the next draw."""
        return not (self.failed or self.complete) and bool(self._guarded(self._restricts))

    def _restricts(self) -> bool:
        sampling = self._request.sampling
        early = len(self._drawn) < self._request.min_tokens
        if early or sampling.banned or self._allowed is not None or self._forced or self._state == "held":
            return True
        if self._state == "thinking":
            return self._must_answer
        return any(self._overruns())

    def advance(self, token: int) -> None:
        """`token` was drawn."""
        self._drawn.append(token)
        if not (self.failed or self.complete or token in self._stops):
            self._guarded(lambda: self._advance(token))

    def _advance(self, token: int) -> None:
        if self._forced:
            self._forced.popleft()
        if self._state == "held":
            self._hold(token)
        elif self._state == "thinking":
            self._think_on(token)
        elif self._request.grammar is not None or self._request.thought is not None:
            self._look(token)

    def pay(self, seconds: float) -> None:
        """Its matcher took so long for a mask."""
        self.slow = seconds > MASK_S
        self._beyond_s += max(0.0, seconds - MASK_S)
        if self._beyond_s > _BEYOND_S:
            self._fail("The answer cannot go on by its grammar: it takes too long to find what may follow.")

    def rule_out(self, bits: Bits) -> None:
        """Clear the bits of what may not be drawn next. `bits` are those that the matcher filled, else all ones."""
        self._guarded(lambda: self._rule_out(bits))
        if self.failed is None and not bits.any():
            self._fail(_NOTHING_LEFT)
        if self.failed is not None:
            # What is drawn now is never seen, but it must be drawn.
            bits[:] = -1

    def _rule_out(self, bits: Bits) -> None:
        if self._forced:
            bits[:] = 0
            allow(bits, self._forced[0])
        else:
            self._rule_out_ends(bits)
            if self._state == "free":
                for opening, written, beyond in self._overruns():
                    self._rule_out_overrun(bits, opening, written, beyond)
            if self._allowed is not None:
                bits &= self._allowed
            for banned in self._request.sampling.banned:
                before = banned[:-1]
                if not before or self._drawn[-len(before) :] == before:
                    forbid(bits, banned[-1])
        self._check()

    # ---- failing

    def _guarded(self, work: Callable[[], T]) -> T | None:
        """What `work` raises ends this answer, and none of those that share its steps."""
        try:
            return work()
        except GrammarError as error:
            self._fail(str(error))
        except Exception as error:
            self.failed = explain(error)
            log.error("an answer cannot be steered any more", exc_info=error)
        return None

    def _fail(self, message: str) -> None:
        self.failed = Failure("invalid", message)

    # ---- states

    @property
    def _must_answer(self) -> bool:
        """Whether the answer must not end within its thought."""
        return self._request.grammar is not None and not self._lazy

    def _answer(self) -> None:
        self._state = "free"
        self._watch.reset()
        if self._must_answer:
            self._begin_grammar([])

    def _think(self) -> None:
        self._state = "thinking"
        self._end.reset()
        self._close_if_spent()

    def _think_on(self, token: int) -> None:
        self._thought_tokens += 1
        if self._end.push(token) is not None or (self._closing and not self._forced):
            # What is left of the closing opens the answer.
            self._closing = False
            self._begin = []
            self._answer()
        elif not self._forced:
            self._close_if_spent()

    def _close_if_spent(self) -> None:
        thought = self._request.thought
        if thought and thought.max_tokens is not None and self._thought_tokens >= thought.max_tokens:
            self._forced.extend(thought.closing)
            self._closing = bool(thought.closing)

    def _look(self, token: int) -> None:
        found = self._watch.push(token)
        if found is None:
            return
        index, written = found
        if index < len(self._openings):
            self._begin_grammar(self._tokens.spell(written))
        else:
            self._think()

    def _begin_grammar(self, written: list[int]) -> None:
        assert self._grammar is not None
        self._state, self._matcher = "held", self._grammar.deep_copy()
        if written:
            self._consume(written)

    def _hold(self, token: int) -> None:
        assert self._matcher is not None
        begin, self._begin = self._begin, []
        if begin and token == begin[0] and not self._matcher.validate_tokens([token]):
            self._forced.extend(begin[1:])
            self._think()
        else:
            self._consume([token])

    def _consume(self, tokens: list[int]) -> None:
        assert self._matcher is not None
        self._matcher.consume_tokens(tokens)
        self._check()
        if self.failed:
            return
        if not self._lazy:
            self.complete = self._matcher.is_stopped()
        elif self._matcher.is_accepting():
            grammar = self._request.grammar
            self.complete = grammar is not None and grammar.once
            self._matcher = None
            self._answer()

    def _check(self) -> None:
        if self._state == "held" and self._matcher is not None and self._matcher.is_error():
            self._fail(f"The answer cannot go on by its grammar: {first_line(self._matcher.get_error())}")

    # ---- masks

    def _rule_out_ends(self, bits: Bits) -> None:
        may_end = len(self._drawn) >= self._request.min_tokens
        if self._state == "held" and self._matcher is not None:
            if not self._matcher.is_accepting():
                # An end that is allowed now is a marker of the grammar's.
                if self._begin:
                    allow(bits, self._begin[0])
                return
            for token in self._tokens.ends:
                forbid(bits, token)
            if may_end:
                for token in self._stops:
                    allow(bits, token)
                return
        elif self._state == "thinking" and self._must_answer:
            may_end = False
        if not may_end:
            for token in self._stops:
                forbid(bits, token)

    def _overruns(self) -> list[tuple[bytes, int, list[int]]]:
        """Openings that one token may complete and run beyond: how much is written, and those tokens."""
        if not self._lazy_and_free:
            return []
        return [
            (self._openings[index], written, beyond)
            for index, written in self._watch.begun()
            if index < len(self._openings) and (beyond := self._tokens.beyond(self._openings[index][written:]))
        ]

    @property
    def _lazy_and_free(self) -> bool:
        return self._request.grammar is not None and self._lazy and self._state == "free"

    def _rule_out_overrun(self, bits: Bits, opening: bytes, written: int, beyond: list[int]) -> None:
        """What runs beyond an opening must go on as the grammar does."""
        assert self._grammar is not None
        matcher = self._grammar.deep_copy()
        matcher.consume_tokens(self._tokens.spell(opening[:written]))
        allowed = np.zeros((1, len(bits)), np.int32)
        fill_next_token_bitmask(matcher, allowed)
        bits &= ~bits_of(beyond, self._width) | allowed[0]


def first_line(error: str) -> str:
    return (error.strip().splitlines() or ["unknown error"])[0][:300]
