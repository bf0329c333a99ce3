"""The memory that is foretold, against what MLX has taken: prompt by prompt, and with everything at once."""

from __future__ import annotations

import random

import mlx.core as mx
import pytest

from server.engine.admission import Admission
from server.engine.cost_model import measure
from server.engine.engine import Engine
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.rehearsal import Together
from server.engine_client.protocol import (
    Boundary,
    Cancel,
    Failed,
    Finished,
    Generate,
    Load,
    PeakMemory,
    Prefilled,
    Sampling,
)
from tests.support.talks import Model

VOCABULARY = 448
MB = 10**6


def request(id: int, prompt: list[int], max_tokens: int) -> Generate:
    ends = [Boundary(len(prompt) // 3, "system"), Boundary(len(prompt) - 1, "user")]
    return Generate(
        id=id,
        prompt=prompt,
        max_tokens=max_tokens,
        stop_tokens=[],
        sampling=Sampling(seed=id, temperature=1),
        boundaries=ends,
        client=str(id % 3),
    )


def engine_with(model: Model, room: int, step: int) -> Engine:
    """`room` bytes beside all that is in memory now, the weights among them."""
    cost, used = measure(model.raw), mx.get_active_memory()
    options = Load(model_dir="", max_concurrent=6, prefill_step_tokens=step, decode_stall_target_s=30, cache_limit=room)
    return Engine(model.raw, VOCABULARY, options, Admission(used + room, used, cost), DiskTier(None, "", 0), Together())


def peak_of(engine: Engine, prompt: list[int]) -> PeakMemory:
    engine.handle(request(1, prompt, 1))
    while True:
        for event in engine.step():
            assert not isinstance(event, Failed), event.message
            if isinstance(event, Prefilled) and event.peak is not None:
                return event.peak


@pytest.mark.parametrize("tokens", [1000, 8000, pytest.param(32_000, marks=pytest.mark.slow)])
def test_the_peak_that_is_foretold_is_within_5_percent_of_the_measured_one(model: Model, tokens: int) -> None:
    # The tests' models have next to no weights: what a model of 100 MB would have, so that a megabyte is not a third.
    weights = mx.zeros(100 * MB // 4)
    mx.eval(weights)
    engine = engine_with(model, 4000 * MB, 256)
    mx.reset_peak_memory()
    peak = peak_of(engine, [70 + at % 90 for at in range(tokens)])
    assert peak.predicted == pytest.approx(peak.measured, rel=0.05)


def traffic(engine: Engine, steps: int, longest: int, seed: int) -> int:
    """New conversations, next turns, cancellations, whatever comes, for so many steps; how many requests ended well.
    Some end for want of memory."""
    draw = random.Random(seed)
    prompts: list[list[int]] = [[draw.randrange(5, VOCABULARY) for _ in range(30)]]
    next_id, finished = 0, 0
    running: set[int] = set()
    for _ in range(steps):
        if len(running) < 9 and draw.random() < 0.4:
            old = draw.choice(prompts)[: draw.randrange(1, longest)] if draw.random() < 0.7 else []
            more = draw.randrange(2, max(3, (longest - len(old)) // draw.choice((1, 4, 16))))
            prompt = [*old, *(draw.randrange(5, VOCABULARY) for _ in range(more))]
            prompts = [*prompts[-20:], prompt]
            next_id += 1
            running.add(next_id)
            events = engine.handle(request(next_id, prompt, draw.choice((1, 20, 60))))
        else:
            events = []
        if running and draw.random() < 0.02:
            gone = draw.choice(sorted(running))
            running.discard(gone)
            events += engine.handle(Cancel(gone))
        for event in [*events, *engine.step()]:
            if isinstance(event, Finished | Failed) and event.id is not None:
                running.discard(event.id)
                finished += isinstance(event, Finished)
                assert not isinstance(event, Failed) or event.kind in ("too_long", "memory"), event.message
    return finished


def check_ceiling(model: Model, room: int, steps: int, longest: int, seed: int) -> None:
    engine = engine_with(model, room, 128)
    ceiling = mx.get_active_memory() + room
    mx.reset_peak_memory()
    finished = traffic(engine, steps, longest, seed)
    peak = engine.stats().peak_bytes
    assert finished > steps / 40
    assert peak <= ceiling, f"{(peak - ceiling) / MB:.2f} MB over, of {room / MB:.0f} MB of room"


# Enough for several conversations; for one and a half of the longest; for less than the longest.
ROOMS = {"much": (16 * MB, 1000), "little": (6 * MB, 1500), "less": (4 * MB, 4000)}


@pytest.mark.parametrize("room", ROOMS)
def test_mixed_traffic_never_passes_the_ceiling(model: Model, room: str) -> None:
    check_ceiling(model, *ROOMS[room][:1], steps=150, longest=ROOMS[room][1], seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("room", ROOMS)
def test_mixed_traffic_for_minutes_never_passes_the_ceiling(model: Model, room: str, seed: int) -> None:
    check_ceiling(model, *ROOMS[room][:1], steps=3000, longest=ROOMS[room][1], seed=10 + seed)
