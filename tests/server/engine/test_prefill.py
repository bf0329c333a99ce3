"""Prompts that are read together, with the answers that each has alone."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from server.engine import kv
from server.engine.admission import Admission
from server.engine.cost_model import measure
from server.engine.engine import Engine
from server.engine.prefill import Prefill, read_together
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.rehearsal import Together
from server.engine_client.protocol import Generate, Load, Tokens
from tests.support.talks import Model, generate, new_talk


def test_short_prompts_are_read_together_and_answered_as_alone(model: Model) -> None:
    options = Load(model_dir="", max_concurrent=8, prefill_step_tokens=2048, cache_limit=10**9)
    admission = Admission(10**9, 0, measure(model.raw))
    engine = Engine(model.raw, 448, options, admission, DiskTier(None, "", 0), Together())
    # The first prompts tell how fast this machine is; then chunks are large.
    answers(engine, [generate(*new_talk(seed).asked(), id=seed) for seed in range(300, 304)])
    talks = [new_talk(seed).say("assistant", 9).say("user", seed) for seed in range(20, 26)]
    requests = [generate(*talk.asked(), id=index) for index, talk in enumerate(talks)]
    assert answers(engine, requests) == {request.id: model.greedy(request.prompt) for request in requests}


def test_prompts_that_are_read_together_fill_the_caches_that_they_fill_alone(model: Model) -> None:
    requests = [generate(new_talk(seed).tokens[: 40 + 15 * seed], id=seed) for seed in range(4)]
    together, alone = ([Prefill(model.raw, request) for request in requests] for _ in range(2))
    for prefill in together + alone:
        prefill.start(None, 0)
    for tokens in (30, 8):
        read_together(model.raw, [(prefill, tokens + prefill.id) for prefill in together])
        for prefill in alone:
            prefill.read(tokens + prefill.id)
    for ours, reference in zip(together, alone, strict=True):
        assert ours.done == reference.done
        segments = (kv.extract(prefill.layers, 0, prefill.done) for prefill in (ours, reference))
        for got, expected in zip(*segments, strict=True):
            assert mx.allclose(got.keys, expected.keys, atol=1e-3)
            assert mx.allclose(got.values, expected.values, atol=1e-3)


def answers(engine: Engine, requests: Sequence[Generate]) -> dict[int, list[int]]:
    made: dict[int, list[int]] = {request.id: [] for request in requests}
    for request in requests:
        engine.handle(request)
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Tokens):
                made[event.id] += event.tokens
    return made
