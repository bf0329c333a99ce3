"""What the engine does while nobody asks for anything."""

from __future__ import annotations

import mlx.core as mx

from server.engine.process import chores
from server.engine_client.protocol import Generate, Sampling
from tests.support.questions import engine_of
from tests.support.stepped import finish
from tests.support.talks import Model


def test_an_idle_engine_gives_back_what_is_kept_for_reuse_and_then_does_nothing_more(model: Model) -> None:
    engine = engine_of(model.raw, 448)
    prompt = list(range(70, 100))
    engine.handle(
        Generate(id=1, prompt=prompt, max_tokens=40, stop_tokens=[], sampling=Sampling(seed=0, temperature=0))
    )
    finish(engine)
    idle = chores(engine)
    assert next(idle) >= 1000
    assert mx.get_cache_memory() > 0
    assert next(idle) >= 1000
    assert mx.get_cache_memory() == 0
    # What is kept of the conversation stays.
    assert engine.stats().prefix_bytes > 0
    assert list(idle) == []
