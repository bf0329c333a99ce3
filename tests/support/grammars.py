"""Grammars of calls, run by llguidance over the small vocabularies of `wire`."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import llguidance
import numpy as np

from server.chat.tokenizers.vocabulary import Vocabulary

END_PIECE = b"</end>"
_CLOSERS = (b"\n</parameter>\n", b"</parameter>\n", b'<|"|>', b"<escape>", b"</arg_value>", b'"')


class GrammarTokens:
    """The vocabulary as llguidance takes it, with a token behind it that ends an answer."""

    bos_token_id = None

    def __init__(self, known: Vocabulary) -> None:
        self.tokens = [known.token_bytes(token) for token in range(known.vocab_size)] + [END_PIECE]
        self.eos_token_id = known.vocab_size
        self.special_token_ids = list(range(256, known.vocab_size + 1))

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def matcher(known: Vocabulary, lark: str) -> llguidance.LLMatcher:
    """At its beginning. Compiled once: that takes longer than most walks."""
    return _compiled(known, lark).deep_copy()


@functools.lru_cache(maxsize=2)
def _compiled(known: Vocabulary, lark: str) -> llguidance.LLMatcher:
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(GrammarTokens(known)))
    made = llguidance.LLMatcher(tokenizer, "start: calls\n" + lark, log_level=0)
    assert not made.is_error(), made.get_error()
    return made


def token_ids(pieces: Sequence[tuple[int, str]]) -> list[int]:
    """Of texts and markers, as `wire.tokens` gives them."""
    return [one for token, text in pieces for one in ([token] if token >= 256 else text.encode())]


def accepts(known: Vocabulary, lark: str, ids: Sequence[int]) -> bool:
    run = matcher(known, lark)
    return bool(run.try_consume_tokens(list(ids)) == len(ids) and run.is_accepting())


def walk(known: Vocabulary, lark: str, rng: random.Random, most: int = 3000) -> list[int] | None:
    """What a model without sense writes under the grammar, soon tired of every string; None if it found no end."""
    run = matcher(known, lark)
    made: list[int] = []
    while len(made) < most:
        mask = np.frombuffer(run.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(mask, count=known.vocab_size + 1, bitorder="little")).tolist()
        if known.vocab_size in allowed and (len(allowed) == 1 or rng.random() < 0.5):
            return made
        allowed = [token for token in allowed if token != known.vocab_size]
        if len(allowed) > 100 and rng.random() < 0.4:
            # In a string, of which most of these is a beginning of the end.
            closer = list(rng.choice(_CLOSERS))
            made += closer[: run.try_consume_tokens(closer)]
            continue
        ends = [token for token in allowed if token >= 256 or token in b'"}]</\n']
        token = rng.choice(ends if ends and rng.random() < 0.6 else allowed)
        assert run.consume_token(token), run.get_error()
        made.append(token)
    return None
