"""What reading has taken bounds what is read next, of its own kind."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from server.engine.admission import Admission
from server.engine.cost_model import measure
from server.engine.engine import Engine
from server.engine.prefill import Prefill
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.rehearsal import Together
from server.engine_client.protocol import Load
from tests.support.stepped import finish
from tests.support.talks import Model, generate


def ask(engine: Engine, *prompts: list[int], **fields: Any) -> None:
    for id, prompt in enumerate(prompts):
        engine.handle(generate(prompt, id=id, max_tokens=1, **fields))
    finish(engine)


def test_prompts_that_are_scored_or_read_together_make_no_other_prompt_slower(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their logits and their padding take more than the cost model says of as many tokens."""
    cost, used = measure(model.raw), mx.get_active_memory()
    room = cost.kv_bytes(400) + cost.chunk_bytes(100, 400)
    options = Load(model_dir="", max_concurrent=8, prefill_step_tokens=2048, decode_stall_target_s=30, cache_limit=0)
    admission = Admission(used + room, used, cost)
    engine = Engine(model.raw, 448, options, admission, DiskTier(None, "", 0), Together())
    passes: list[int] = []
    begin = Prefill.begin

    def noting(prefill: Prefill, tokens: int) -> None:
        passes.append(tokens)
        begin(prefill, tokens)

    monkeypatch.setattr(Prefill, "begin", noting)
    prompt = list(range(10, 410))
    for _ in range(2):
        passes.clear()
        ask(engine, prompt)
    before = list(passes)
    assert 1 < len(before) < 10
    ask(engine, prompt[:130], prompt_logprobs=True, top_logprobs=20)
    ask(engine, *(prompt[at : at + 20] for at in range(4)))
    passes.clear()
    ask(engine, prompt)
    # What is in use meanwhile may differ by a buffer.
    assert len(passes) <= len(before)
