"""An engine with hardly more memory than one long prompt takes, and the turns of a conversation with it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
from mlx_lm.utils import load_model

from server.engine.admission import Admission
from server.engine.cost_model import measure
from server.engine.engine import Engine
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.rehearsal import Together
from server.engine_client.protocol import Boundary, EngineEvent, Failed, Finished, Generate, Load, Prefilled
from tests.support.sliding_model import write_sliding_model
from tests.support.stepped import finish, tokens_of, until
from tests.support.talks import Model, generate

PROMPT, ANSWER, LONG_ANSWER, NEXT = 1000, 6, 60, 30
LAYERS = {"plain": ["full_attention"] * 12, "sliding": ["sliding_attention", "full_attention"] * 6}


def deep_model(folder: Path, kind: str) -> Model:
    """Of so many layers that one of them is a small part of a sequence's memory; `kind` is one of `LAYERS`."""
    shape = {
        "layer_types": LAYERS[kind],
        "num_hidden_layers": 12,
        "sliding_window": 128,
        "num_attention_heads": 2,
        "head_dim": 32,
        "num_global_key_value_heads": 2,
        "enable_moe_block": False,
    }
    write_sliding_model(folder, **shape)
    return Model(folder, load_model(folder)[0])


@dataclass
class Turn:
    """A request, what came of it, and how much of its prompt was found."""

    request: Generate
    events: list[EngineEvent] = field(default_factory=list)

    @property
    def answer(self) -> list[int]:
        return tokens_of(self.events, self.request.id)

    @property
    def found(self) -> int:
        own = [event for event in self.events if isinstance(event, Prefilled) and event.id == self.request.id]
        return max(event.cached for event in own)


@dataclass
class Little:
    """An engine with memory for hardly more than `beside` of its longest prompts, with `answer` tokens behind."""

    model: Model
    beside: int = 1
    answer: int = LONG_ANSWER
    disk: DiskTier = field(default_factory=lambda: DiskTier(None, "", 0))
    turns: int = 0

    def __post_init__(self) -> None:
        mx.clear_cache()
        cost, used = measure(self.model.raw), mx.get_active_memory()
        longest = PROMPT + 2 * (ANSWER + NEXT)
        running = [(generate([0] * longest, id=id, max_tokens=self.answer), longest) for id in range(self.beside)]
        # The state of its windows is kept beside them.
        needed = Admission(0, 0, cost).ahead(running) + sum(size * most for size, most in cost.windows)
        # The reserve is a fifth of it.
        self.admission = Admission(used + needed * 5 // 4 + 10**5, used, cost)
        self.ceiling = self.admission.limit
        self.engine = engine_with(self.model, self.admission, disk=self.disk)
        mx.reset_peak_memory()

    def turn(self, prompt: list[int], answer: int = ANSWER, **fields: object) -> Turn:
        self.turns += 1
        return Turn(generate(prompt, boundaries_of(prompt), id=self.turns, max_tokens=answer, **fields))

    def begin(self, turn: Turn, is_last: Callable[[EngineEvent], bool]) -> Turn:
        """Up to the first event of its own that is so."""
        turn.events += self.engine.handle(turn.request)
        if not any(map(is_last, turn.events)):
            turn.events += until(
                self.engine, lambda event: getattr(event, "id", None) == turn.request.id and is_last(event)
            )
        return turn

    def ask(self, prompt: list[int], **fields: object) -> Turn:
        turn = self.begin(self.turn(prompt, **fields), lambda event: isinstance(event, Finished | Failed))
        # What it leaves is kept in the step after.
        turn.events += self.engine.step()
        assert not [event for event in turn.events if isinstance(event, Failed)]
        return turn

    def check(self) -> None:
        """Memory never was above the ceiling; and it is too little for the caches and a copy of them."""
        assert self.engine.stats().peak_bytes <= self.ceiling
        running = [(generate([0] * PROMPT, id=id, max_tokens=ANSWER), PROMPT) for id in range(self.beside)]
        assert self.admission.cost.kv_bytes(PROMPT) > self.admission.beside(running)


def engine_with(
    model: Model, admission: Admission, cache_limit: int = 10**9, step: int = 64, disk: DiskTier | None = None
) -> Engine:
    options = Load(
        model_dir="", max_concurrent=4, prefill_step_tokens=step, decode_stall_target_s=30, cache_limit=cache_limit
    )
    return Engine(model.raw, 448, options, admission, disk or DiskTier(None, "", 0), Together())


def boundaries_of(prompt: list[int]) -> list[Boundary]:
    """The last tokens open the reply."""
    return [Boundary(20, "system"), Boundary(len(prompt) - 3, "user")]


def cold(model: Model, prompt: list[int], answer: int = ANSWER) -> list[int]:
    """What an engine says that has read nothing before."""
    cost, used = measure(model.raw), mx.get_active_memory()
    engine = engine_with(model, Admission(used + 10**9, used, cost), 0, 256)
    engine.handle(generate(prompt, boundaries_of(prompt), max_tokens=answer))
    return tokens_of(finish(engine), 0)


def words(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(10, 448) for _ in range(count)]
