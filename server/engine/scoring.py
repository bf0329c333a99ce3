"""Logprobs: of one token, and of a whole prompt (completions with echo and logprobs). Runs in the engine process.

Scoring a prompt is a prefill that keeps its logits, so the KV cache it fills serves the generation that follows.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from server.engine.messages import Event, Generate, Prefilled, PromptScored, TokenLogprob

# Prompt tokens per slice: the float32 logits of 128 positions of a 262,144-token vocabulary are 134 MB.
_SLICE = 128


def token_logprob(logprobs: mx.array, token: int, top: int) -> TokenLogprob:
    """The logprob of `token` and the `top` best alternatives out of `logprobs`, shape (vocab,)."""
    chosen = _finite(float(logprobs[token].item()))  # type: ignore[arg-type]
    if top == 0:
        return TokenLogprob(token, chosen)
    best = mx.argpartition(-logprobs, kth=top - 1)[:top]
    ids: Any = best.tolist()
    values: Any = logprobs[best].tolist()
    ranked = sorted(zip(ids, values, strict=True), key=lambda pair: -pair[1])
    return TokenLogprob(token, chosen, [(id, _finite(logprob)) for id, logprob in ranked])


class Scoring:
    """The prompt of `request`, scored slice by slice. Afterwards `cache` holds all of it but the last token."""

    def __init__(self, model: Any, request: Generate) -> None:
        self.request = request
        self.cache: list[Any] = make_prompt_cache(model)
        self._model = model
        self._done = 0
        self._logprobs: list[TokenLogprob] = []

    @property
    def finished(self) -> bool:
        return self._done >= len(self.request.prompt) - 1

    def step(self) -> list[Event]:
        """One slice. The events are the progress, and with the last slice the logprobs."""
        prompt, start = self.request.prompt, self._done
        end = min(start + _SLICE, len(prompt) - 1)
        if end > start:
            logits = self._model(mx.array([prompt[start:end]]), cache=self.cache)[0]  # (n, vocab)
            logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            top = self.request.top_logprobs or 0
            self._logprobs += [token_logprob(logprobs[i], prompt[start + i + 1], top) for i in range(end - start)]
            mx.eval([c.state for c in self.cache])
            self._done = end
        events: list[Event] = [Prefilled(self.request.id, end, len(prompt))]
        if self.finished:
            events.append(PromptScored(self.request.id, self._logprobs))
        return events


def _finite(logprob: float) -> float:
    """A token ruled out by logit_bias has -inf, which JSON cannot say; OpenAI sends -9999."""
    return logprob if math.isfinite(logprob) else -9999.0
