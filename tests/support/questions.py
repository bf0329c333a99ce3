"""Questions to an engine in this process, and what the bare model says of each of their options by itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from server.engine.admission import Admission
from server.engine.cost_model import measure
from server.engine.engine import Engine
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.rehearsal import Together
from server.engine_client.protocol import Boundary, Branch, Failed, Load, OptionsScored, Prefilled, ScoreOptions
from tests.support.stepped import until

TOGETHER = Together()

Logprobs = list[list[float]]
# A tail of so many tokens, with options of so many.
Shape = tuple[int, Sequence[int]]


class Scores(NamedTuple):
    logprobs: Logprobs
    cached: int


def engine_of(model: Any, vocabulary: int, together: Together = TOGETHER, **options: Any) -> Engine:
    fields = {"max_concurrent": 4, "prefill_step_tokens": 64, "decode_stall_target_s": 10, "cache_limit": 10**8}
    load = Load(model_dir="", **(fields | options))
    return Engine(model, vocabulary, load, Admission(10**10, 0, measure(model)), DiskTier(None, "", 0), together)


def questions(prompt_length: int, shapes: Sequence[Shape], vocabulary: int, seed: int = 0, id: int = 1) -> ScoreOptions:
    """Of random tokens; the prompt is that of its length and seed, whatever is asked about it."""
    draw = random.Random(f"{prompt_length} {seed}")
    prompt = [draw.randrange(5, vocabulary) for _ in range(prompt_length)]
    branches = []
    for tail, options in shapes:
        first = draw.sample(range(5, vocabulary), len(options))
        rest = [[draw.randrange(5, vocabulary) for _ in range(length - 1)] for length in options]
        branches.append(
            Branch(
                [draw.randrange(5, vocabulary) for _ in range(tail)],
                [[token, *more] for token, more in zip(first, rest, strict=True)],
            )
        )
    return ScoreOptions(id=id, prompt=prompt, branches=branches, boundaries=[Boundary(prompt_length, "user")])


def scores(engine: Engine, score: ScoreOptions) -> Scores:
    """The engine's answer, with nothing else to do."""
    engine.handle(score)
    told = until(engine, lambda event: isinstance(event, OptionsScored | Failed))
    [end] = [event for event in told if isinstance(event, OptionsScored | Failed)]
    if isinstance(end, Failed):
        raise AssertionError(end.message)
    return Scores(end.logprobs, max(event.cached for event in told if isinstance(event, Prefilled)))


def bare_scores(model: Any, score: ScoreOptions) -> Logprobs:
    """By mlx-lm's model alone, reading each option's whole text: all options of a question side by side in one pass."""
    return [_bare(model, [*score.prompt, *branch.tail], branch.options) for branch in score.branches]


def _bare(model: Any, before: list[int], options: Sequence[Sequence[int]]) -> list[float]:
    # What follows an option's last token is never looked at by what stands before it.
    longest = max(map(len, options))
    texts = mx.array([[*before, *option, *[0] * (longest - len(option))][:-1] for option in options])
    # With a cache: some models answer otherwise without one.
    logits = model(texts, cache=make_prompt_cache(model))[:, len(before) - 1 :].astype(mx.float32)
    logprobs: Any = (logits - mx.logsumexp(logits, axis=-1, keepdims=True)).tolist()
    return [
        sum(row[at][token] for at, token in enumerate(option)) for row, option in zip(logprobs, options, strict=True)
    ]


def most_apart(one: Logprobs, other: Logprobs) -> float:
    return max(abs(a - b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True))
