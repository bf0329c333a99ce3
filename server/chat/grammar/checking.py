"""Trying a grammar before the engine has to live with it. Text process: what a grammar costs, its author chooses.

llguidance bounds the work of each grammar by limits of its own; whatever gets past them ends this process, not the
engine.
"""

from __future__ import annotations

import re
from functools import lru_cache

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from server.engine_client.protocol import GRAMMAR_STEPS

_WORDS = "failed to compile JSON schema: "


class GrammarFault(Exception):
    """llguidance does not take the grammar; the message is its reason in one line."""


def check(text: str, vocab_size: int) -> list[str]:
    """What llguidance warns of in a grammar whose token ids are below `vocab_size`.

    Raises:
        GrammarFault: it cannot be used.
    """
    limits = LLParserLimits(step_max_items=GRAMMAR_STEPS, verbose_errors=False)
    matcher = LLMatcher(_tokenizer(vocab_size), text, log_level=0, limits=limits)
    if not matcher.is_error():
        # Whether anything can begin shows only when it is to.
        matcher.compute_bitmask()
    if matcher.is_error():
        raise GrammarFault(_reason(matcher.get_error()))
    warnings: list[str] = matcher.get_grammar_warnings()
    return warnings


def _reason(message: str) -> str:
    """Without the excerpt of the grammar that it ends with: most of that is ours and not the client's."""
    message = message.split("\n   1 | ")[0]
    message = re.split(r"\n\s*\d+ \| ", message)[0].strip()
    found = re.search(r"^error: (.*)", message, re.MULTILINE)
    head, _, schema = message.partition(_WORDS)
    if schema.startswith("oneOf "):
        return "oneOf is enforced only where no two of its parts can hold at once, which is not sure here"
    if found:
        return f"its regular expression: {found[1]}"
    return (schema or re.sub(r"^(?:at )?\d+\(\d+\): ", "", head)).splitlines()[0][:300]


@lru_cache(1)
def _tokenizer(vocab_size: int) -> LLTokenizer:
    """The bytes, and nothing for every other id: whether a grammar is well formed does not depend on the rest."""
    return LLTokenizer(TokenizerWrapper(_Bytes(vocab_size)), slices=[])


class _Bytes:
    eos_token_id = 0
    bos_token_id = None
    special_token_ids = (0,)

    def __init__(self, size: int) -> None:
        self.tokens = [b"</s>", *(bytes([byte]) for byte in range(256))]
        self.tokens += [b""] * (size - len(self.tokens))

    def __call__(self, text: bytes) -> list[int]:
        return [1 + byte for byte in text]
