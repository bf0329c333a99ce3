"""Bias and penalties for all rows at once are those of mlx-lm for each row, whatever else is in the batch."""

from __future__ import annotations

import random

import mlx.core as mx
import pytest
from mlx_lm.sample_utils import make_logits_processors

from server.engine.penalties import Penalised, Penalties, change_logits
from server.engine_client.protocol import Sampling

WIDTH, STEPS = 300, 12
# Of mlx-lm they look at the last 20 tokens.
WHOLE = 10**6


def samplings(count: int) -> list[Sampling]:
    draw = random.Random(3)
    return [
        Sampling(
            seed=0,
            logit_bias=draw.choice([{}, {draw.randrange(WIDTH): 2.5, draw.randrange(WIDTH): -100.0}]),
            repetition_penalty=draw.choice([1.0, 1.1, 1.7, 0.8]),
            presence_penalty=draw.choice([0.0, 0.4, -1.3]),
            frequency_penalty=draw.choice([0.0, 0.3, -0.7]),
        )
        for _ in range(count)
    ]


def by_mlx_lm(sampling: Sampling, tokens: list[int], prompt_length: int, logits: mx.array) -> mx.array:
    """One row, (1, width)."""
    repetition = sampling.repetition_penalty if sampling.repetition_penalty != 1 else None
    of_all = make_logits_processors(sampling.logit_bias, repetition, WHOLE)
    of_answer = make_logits_processors(
        presence_penalty=sampling.presence_penalty,
        presence_context_size=WHOLE,
        frequency_penalty=sampling.frequency_penalty,
        frequency_context_size=WHOLE,
    )
    logits = mx.array(logits)
    for processor in of_all:
        logits = processor(mx.array(tokens), logits)
    for processor in of_answer:
        logits = processor(mx.array(tokens[prompt_length:], mx.int32), logits)
    return logits


def test_rows_of_any_company_are_changed_as_by_mlx_lm_and_as_alone() -> None:
    draw = random.Random(1)
    rows = samplings(16)
    prompts = [[draw.randrange(WIDTH) for _ in range(draw.randrange(1, 40))] for _ in rows]
    tokens = [prompt[:-1] for prompt in prompts]
    inputs = [prompt[-1] for prompt in prompts]
    company = None
    for step in range(STEPS):
        if step in (0, 5):
            # As when somebody comes or goes: all is known from the host's tokens.
            penalised = [Penalised(row, of_row, len(p)) for row, of_row, p in zip(rows, tokens, prompts, strict=True)]
            company = Penalties(penalised, WIDTH)
        assert company is not None
        logits = mx.random.normal((len(rows), WIDTH), key=mx.random.key(step)) * 5
        changed = company.apply(logits, mx.array(inputs)[:, None])
        mx.eval(changed, company.state)
        for at, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            mine = Penalties([Penalised(row, tokens[at], len(prompt))], WIDTH)
            alone = mine.apply(logits[at : at + 1], mx.array([[inputs[at]]]))
            assert mx.array_equal(alone[0], changed[at])
            expected = by_mlx_lm(row, [*tokens[at], inputs[at]], len(prompt), logits[at : at + 1])[0]
            if row.frequency_penalty:
                # mlx-lm subtracts it once for each time.
                assert mx.allclose(changed[at], expected, rtol=1e-5, atol=1e-5)
            else:
                assert mx.array_equal(changed[at], expected)
            tokens[at].append(inputs[at])
            inputs[at] = int(mx.argmax(changed[at]).item())
            assert inputs[at] == int(mx.argmax(expected).item())


@pytest.mark.parametrize(
    ("sampling", "changes"),
    [
        (Sampling(seed=0, temperature=1.0, top_k=3), False),
        (Sampling(seed=0, repetition_penalty=1.1), True),
        (Sampling(seed=0, presence_penalty=-0.1), True),
        (Sampling(seed=0, frequency_penalty=0.1), True),
        (Sampling(seed=0, logit_bias={3: 0.0}), True),
    ],
)
def test_rows_that_ask_for_nothing_cost_nothing(sampling: Sampling, changes: bool) -> None:
    assert change_logits([Sampling(seed=0), sampling]) == changes
