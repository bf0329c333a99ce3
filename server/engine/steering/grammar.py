"""Grammars of answers: the tokens as llguidance takes them, and what has been compiled. Runs in the engine process.

The tokens are read as soon as they are known, right after the model was loaded: llguidance holds the GIL meanwhile, for
half a second with 262,144 tokens, and later that would stop every stream. A grammar is compiled in a thread while its
prompt is read, without the GIL. It has been tried in the text process before it comes here, with the same limits, so
that what costs too much never does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from server.engine.steering.steering import Steering, first_line, needs_steering
from server.engine.steering.tokens import GrammarError, SpelledTokens
from server.engine_client.protocol import GRAMMAR_STEPS, Generate, TokenTable

# Agents send the same tools with every request, a few of them at once.
_MOST_KEPT = 32
_MOST_KEPT_CHARS = 4_000_000


class GrammarPending(Exception):
    """The request's grammar is being compiled."""


class Grammars:
    """`vocab_size`: the width of a mask."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._thread = ThreadPoolExecutor(1, "grammar")
        self._tokenizer: Future[LLTokenizer] | None = None
        self._compiled: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        self.tokens: SpelledTokens | None = None

    def know(self, table: TokenTable) -> None:
        """Before the first request with a grammar or a thought."""
        self.tokens = SpelledTokens(table, self._vocab_size)
        self._tokenizer = self._thread.submit(_tokenizer, self.tokens)

    def order(self, request: Generate) -> None:
        """Begin to compile what `request` will need."""
        if request.grammar is None or self._tokenizer is None:
            return
        text = request.grammar.text
        if text not in self._compiled:
            self._compiled[text] = self._thread.submit(_compile, text, self._tokenizer)
            self._forget()
        self._compiled.move_to_end(text)

    def steering(self, request: Generate) -> Steering | None:
        """What will rule out tokens of the answer to `request`; None if nothing is to be.

        Raises:
            GrammarPending: its grammar is being compiled.
            GrammarError: its grammar cannot be used.
        """
        if not needs_steering(request):
            return None
        if (request.grammar is not None or request.thought is not None) and self.tokens is None:
            raise GrammarError("The engine does not know how the model's tokens are spelled.")
        return Steering(request, self.tokens, self._matcher(request), self._vocab_size)

    def _matcher(self, request: Generate) -> LLMatcher | None:
        """At the beginning of the request's grammar."""
        if request.grammar is None:
            return None
        self.order(request)
        compiled = self._compiled[request.grammar.text]
        if not compiled.done():
            raise GrammarPending
        matcher = compiled.result()
        if matcher.is_error():
            raise GrammarError(f"The grammar cannot be used: {first_line(matcher.get_error())}")
        return matcher

    def wait(self, requests: Iterable[Generate], timeout_s: float) -> None:
        """Until one of the grammars of `requests` is there."""
        texts = [request.grammar.text for request in requests if request.grammar is not None]
        wait([self._compiled[text] for text in texts if text in self._compiled], timeout_s, "FIRST_COMPLETED")

    def _forget(self) -> None:
        while len(self._compiled) > 1 and (
            len(self._compiled) > _MOST_KEPT or sum(map(len, self._compiled)) > _MOST_KEPT_CHARS
        ):
            self._compiled.popitem(last=False)


def _tokenizer(tokens: SpelledTokens) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Spelling(tokens)), eos_token=tokens.ends or None)


def _compile(text: str, tokenizer: Future[LLTokenizer]) -> LLMatcher:
    # It was submitted before, to the same thread.
    limits = LLParserLimits(step_max_items=GRAMMAR_STEPS, verbose_errors=False)
    return LLMatcher(tokenizer.result(), text, log_level=0, limits=limits)


class _Spelling:
    """The vocabulary as llguidance takes it."""

    def __init__(self, tokens: SpelledTokens) -> None:
        self.tokens = tokens.texts
        self.special_token_ids = sorted(tokens.markers)
        self.eos_token_id = tokens.ends[0] if tokens.ends else 0
        self.bos_token_id = None
        self._spell = tokens.spell

    def __call__(self, text: bytes) -> list[int]:
        # Asked for what a grammar forces, which no mask depends on.
        try:
            return self._spell(text)
        except GrammarError:
            return []
