"""The logprobs of a whole prompt (completions with echo and logprobs). Runs in the engine process.

Scoring a prompt is a prefill that keeps its logits, so the KV cache it fills serves the generation that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from server.engine.prefill import Prefill
from server.engine.scoring.scores import Scores
from server.engine_client.protocol import EngineEvent, Generate, PromptScored, TokenLogprob

# Prompt tokens per chunk: the float32 logits of 128 positions of a 262,144-token vocabulary are 134 MB.
_MAX_CHUNK = 128


class Scoring(Prefill):
    """The prompt of `request`, scored as it is read; from the start, since a KV cache holds no logits."""

    reuses_prefixes = False
    batchable = False

    def __init__(self, model: Any, request: Generate, waits_for: int | None = None) -> None:
        super().__init__(model, request, waits_for)
        self._top = request.top_logprobs or 0
        self._scored: list[TokenLogprob] = []

    def part(self, size: int, stops: Sequence[int]) -> int:
        return super().part(min(size, _MAX_CHUNK), stops)

    def read(self, tokens: int) -> None:
        prompt, start, end = self.request.prompt, self.done, self.done + tokens
        self.intact = False
        logits = self._forward(prompt[start:end])[0]  # (tokens, vocab)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        following = prompt[start + 1 : end + 1]
        scores = Scores.of(logprobs, mx.array(following, mx.uint32)[:, None], self._top)
        self._scored += scores.read(following, [self._top] * tokens)
        self._commit(tokens)
        self.intact = True

    def result(self) -> list[EngineEvent]:
        return [PromptScored(self.request.id, self._scored)]
