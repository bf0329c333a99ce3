"""Drawing the next token: per request, reproducible, whatever else is in the batch. Runs in the engine process.

The order is that of Hugging Face and vLLM, then XTC: penalties and bias, temperature, top-k, top-p, min-p. mlx-lm
0.32.2 applies the temperature last, and compiles its filters again for each distinct value, which grows without bound
under clients that vary them; here nothing is compiled, and one sort serves all three filters.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
from mlx_lm.sample_utils import greedy_sampler, make_logits_processors

from server.engine_client.protocol import Sampling

# (1, vocab) log-probabilities -> (1,) token ids
Sampler = Callable[[mx.array], mx.array]
# (tokens so far, (1, vocab) logits) -> (1, vocab) logits
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]

_MASK64 = 2**64 - 1
# Penalties of mlx-lm look at the last 20 tokens by default, those of OpenAI and vLLM at all of them.
_WHOLE_CONTEXT = 2**30


def make_sampler(sampling: Sampling) -> Sampler:
    """The draw for one request. Greedy requests share one function object, so mlx-lm samples them in one call."""
    if sampling.temperature < 1e-5:
        greedy: Sampler = greedy_sampler
        return greedy
    return SeededSampler(sampling)


class SeededSampler:
    """Draws token i from key (seed, i); the batch calls it exactly once for each token of its sequence."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._stream = _mix(sampling.seed)
        self._position = 0

    def __call__(self, logprobs: mx.array) -> mx.array:
        key = mx.random.key((self._stream + self._position) & _MASK64)
        self._position += 1
        logits = keep_likely(logprobs.astype(mx.float32) * (1 / self._sampling.temperature), self._sampling)
        if self._sampling.xtc_probability > 0:
            key, other = mx.random.split(key)
            drop = mx.random.uniform(key=other) < self._sampling.xtc_probability
            logits = mx.where(drop, keep_least_likely(logits, self._sampling.xtc_threshold), logits)
        return mx.random.categorical(logits, key=key)


def keep_likely(logits: mx.array, sampling: Sampling) -> mx.array:
    """Set what top-k, top-p and min-p exclude to -inf. `logits` is (1, vocab), already divided by temperature.

    Top-p counts the mass that top-k left, min-p compares with the likeliest token. The likeliest always stays.
    """
    vocab = logits.shape[-1]
    top_k = sampling.top_k if 0 < sampling.top_k < vocab else 0
    if not top_k and sampling.top_p >= 1 and sampling.min_p <= 0:
        return logits
    ordered = -mx.sort(-logits, axis=-1)
    if top_k:
        ordered = ordered[:, :top_k]
    threshold = ordered[:, -1:]
    if sampling.top_p < 1:
        mass = mx.softmax(ordered, axis=-1)
        before = mx.cumsum(mass, axis=-1, inclusive=False)
        last = mx.maximum((before < sampling.top_p).sum(axis=-1, keepdims=True) - 1, 0)
        threshold = mx.maximum(threshold, mx.take_along_axis(ordered, last, axis=-1))
    if sampling.min_p > 0:
        threshold = mx.maximum(threshold, ordered[:, :1] + math.log(sampling.min_p))
    return mx.where(logits < threshold, -mx.inf, logits)


def keep_least_likely(logits: mx.array, threshold: float) -> mx.array:
    """Of the tokens whose probability is at least `threshold`, set all but the least likely to -inf: XTC, "exclude top
    choices". Fewer than two exclude none."""
    probabilities = mx.softmax(logits, axis=-1)
    least = mx.where(probabilities >= threshold, probabilities, mx.inf).min(axis=-1, keepdims=True)
    # Where none is as likely, `least` is infinite.
    return mx.where(probabilities > least, -mx.inf, logits)


def make_processors(sampling: Sampling, prompt_length: int) -> list[LogitsProcessor]:
    """Penalties and bias. Repetition looks at prompt and answer; presence and frequency at the answer, as at OpenAI."""
    processors: list[LogitsProcessor] = make_logits_processors(
        logit_bias=sampling.logit_bias or None,
        repetition_penalty=sampling.repetition_penalty if sampling.repetition_penalty != 1 else None,
        repetition_context_size=_WHOLE_CONTEXT,
    )
    of_answer: list[LogitsProcessor] = make_logits_processors(
        presence_penalty=sampling.presence_penalty or None,
        presence_context_size=_WHOLE_CONTEXT,
        frequency_penalty=sampling.frequency_penalty or None,
        frequency_context_size=_WHOLE_CONTEXT,
    )
    return processors + [_on_answer(p, prompt_length) for p in of_answer]


def _on_answer(processor: LogitsProcessor, prompt_length: int) -> LogitsProcessor:
    return lambda tokens, logits: processor(tokens[prompt_length:], logits)


def _mix(seed: int) -> int:
    """splitmix64's finalizer: neighbouring seeds must not share their streams shifted by one token."""
    z = (seed + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)
