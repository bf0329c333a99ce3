"""The memory that is foretold, against what MLX has taken: prompt by prompt, and with everything at once."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

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
    EngineEvent,
    Failed,
    Finished,
    Generate,
    Load,
    PeakMemory,
    Prefilled,
    Sampling,
)
from tests.support.stepped import until
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
    told = until(engine, lambda event: isinstance(event, Failed) or getattr(event, "peak", None) is not None)
    [peak] = [event.peak for event in told if isinstance(event, Prefilled) and event.peak is not None]
    return peak


@pytest.mark.parametrize("tokens", [1000, 8000, pytest.param(32_000, marks=pytest.mark.slow)])
def test_the_peak_that_is_foretold_is_within_5_percent_of_the_measured_one(model: Model, tokens: int) -> None:
    # The tests' models have next to no weights: what a model of 100 MB would have, so that a megabyte is not a third.
    weights = mx.zeros(100 * MB // 4)
    mx.eval(weights)
    engine = engine_with(model, 4000 * MB, 256)
    mx.reset_peak_memory()
    peak = peak_of(engine, [70 + at % 90 for at in range(tokens)])
    assert peak.predicted == pytest.approx(peak.measured, rel=0.05)


@dataclass
class Traffic:
    """Whatever comes: new conversations, next turns, cancellations. `refused`: for what they would need; `ended`: for
    want of memory, when they ran."""

    engine: Engine
    longest: int
    draw: random.Random
    running: set[int] = field(default_factory=set)
    sent: int = 0
    cancelled: int = 0
    finished: int = 0
    refused: int = 0
    ended: int = 0

    def run(self, steps: int) -> None:
        prompts: list[list[int]] = [[self.draw.randrange(5, VOCABULARY) for _ in range(30)]]
        for _ in range(steps):
            if len(self.running) < 9 and self.draw.random() < 0.4:
                prompts = [*prompts[-20:], self._prompt(prompts)]
                self.sent += 1
                self.running.add(self.sent)
                self._take(self.engine.handle(request(self.sent, prompts[-1], self.draw.choice((1, 20, 60)))))
            if self.running and self.draw.random() < 0.02:
                gone = self.draw.choice(sorted(self.running))
                self.running.discard(gone)
                self.cancelled += 1
                self._take(self.engine.handle(Cancel(gone)))
            self._take(self.engine.step())

    def end(self, steps: int) -> None:
        """Nothing more is asked: until the last of them has ended."""
        for _ in range(steps):
            if not self.running:
                return
            self._take(self.engine.step())
        raise AssertionError(f"{sorted(self.running)} have not ended.")

    def _prompt(self, before: list[list[int]]) -> list[int]:
        old = self.draw.choice(before)[: self.draw.randrange(1, self.longest)] if self.draw.random() < 0.7 else []
        more = self.draw.randrange(2, max(3, (self.longest - len(old)) // self.draw.choice((1, 4, 16))))
        return [*old, *(self.draw.randrange(5, VOCABULARY) for _ in range(more))]

    def _take(self, events: list[EngineEvent]) -> None:
        for event in events:
            match event:
                case Finished():
                    self.running.discard(event.id)
                    self.finished += 1
                case Failed(id=int(id)):
                    self.running.discard(id)
                    assert event.kind in ("too_long", "memory"), event.message
                    self.refused += event.kind == "too_long"
                    self.ended += event.kind == "memory"


def check_ceiling(model: Model, room: int, steps: int, longest: int, seed: int) -> None:
    engine = engine_with(model, room, 128)
    ceiling = mx.get_active_memory() + room
    mx.reset_peak_memory()
    traffic = Traffic(engine, longest, random.Random(seed))
    traffic.run(steps)
    traffic.end(20 * steps)
    peak = engine.stats().peak_bytes
    # Who was let in ends for want of memory where a sequence grows beyond the horizon, which is rare.
    assert traffic.ended <= 1 + traffic.sent / 100
    assert traffic.finished == traffic.sent - traffic.cancelled - traffic.refused - traffic.ended > 0
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
