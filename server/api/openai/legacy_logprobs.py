"""The logprobs object of /v1/completions: four lists side by side. HTTP process."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from server.api.openai.shown import wire_logprob
from server.chat.deltas import ScoredToken


class LegacyLogprobs(msgspec.Struct, frozen=True):
    """`text_offset` counts characters from the start of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def legacy_logprobs(tokens: Sequence[ScoredToken], start: int = 0) -> LegacyLogprobs:
    """The lists for `tokens`, all of the prompt or all of an answer that begins at character `start` of the text."""
    offsets = [start + token.offset for token in tokens]
    values = [None if math.isnan(token.logprob) else wire_logprob(token.logprob) for token in tokens]
    tops = [_top(token) for token in tokens]
    return LegacyLogprobs([token.text for token in tokens], values, tops, offsets)


def joined(first: LegacyLogprobs, then: LegacyLogprobs) -> LegacyLogprobs:
    return LegacyLogprobs(
        first.tokens + then.tokens,
        first.token_logprobs + then.token_logprobs,
        first.top_logprobs + then.top_logprobs,
        first.text_offset + then.text_offset,
    )


def _top(token: ScoredToken) -> dict[str, float] | None:
    """None for the first token of a prompt. The token itself is always in, as at OpenAI: up to k + 1 entries."""
    if math.isnan(token.logprob):
        return None
    top: dict[str, float] = {}
    for _, text, _, logprob in token.top:
        # Parts of a character look alike; the likeliest comes first and stays.
        top.setdefault(text, wire_logprob(logprob))
    top.setdefault(token.text, wire_logprob(token.logprob))
    return top
