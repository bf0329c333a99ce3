"""What several of OpenAI's protocols show alike: usage, log-probabilities, the name of the system. HTTP process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

import server
from server.chat.deltas import Usage

SYSTEM_FINGERPRINT = f"configi-{server.__version__}"
# JSON has no -Infinity; OpenAI writes this for "cannot happen".
_LEAST_LOGPROB = -9999.0


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0


class WireUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails = CompletionDetails()


def wire_usage(usages: Sequence[Usage]) -> WireUsage:
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    cached = sum(usage.cached_tokens for usage in usages)
    reasoning = sum(usage.reasoning_tokens for usage in usages)
    return WireUsage(prompt, completion, prompt + completion, PromptDetails(cached), CompletionDetails(reasoning))


def response_usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def wire_logprob(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)
