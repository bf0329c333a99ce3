"""A prompt that takes most of the memory there is, and its next turn: kept, found, and never above the ceiling."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from server.engine import kv
from server.engine.admission import Admission
from server.engine.cost_model import measure
from server.engine.engine import Engine
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.rehearsal import Together
from server.engine_client.protocol import Boundary, Cancel, EngineEvent, Failed, Finished, Generate, Load, Prefilled
from tests.support.sliding_model import write_sliding_model
from tests.support.stepped import finish, tokens_of
from tests.support.talks import Model, generate

PROMPT, ANSWER, LONG_ANSWER, NEXT = 1000, 6, 60, 30
LAYERS = {"plain": ["full_attention"] * 12, "sliding": ["sliding_attention", "full_attention"] * 6}


@pytest.fixture(scope="module", params=LAYERS)
def deep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Of so many layers that one of them is a small part of a sequence's memory."""
    shape = {
        "layer_types": LAYERS[request.param],
        "num_hidden_layers": 12,
        "sliding_window": 128,
        "num_attention_heads": 2,
        "head_dim": 32,
        "num_global_key_value_heads": 2,
        "enable_moe_block": False,
    }
    folder = write_sliding_model(tmp_path_factory.mktemp("models") / request.param, **shape)
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
    """An engine with memory for hardly more than `beside` of its longest prompts."""

    model: Model
    beside: int = 1
    turns: int = 0

    def __post_init__(self) -> None:
        mx.clear_cache()
        cost, used = measure(self.model.raw), mx.get_active_memory()
        longest = PROMPT + 2 * (ANSWER + NEXT)
        running = [(generate([0] * longest, id=id, max_tokens=LONG_ANSWER), longest) for id in range(self.beside)]
        # The state of its windows is kept beside them.
        needed = Admission(0, 0, cost).ahead(running) + sum(size * most for size, most in cost.windows)
        # The reserve is a fifth of it.
        self.admission = Admission(used + needed * 5 // 4 + 10**5, used, cost)
        self.ceiling = self.admission.limit
        self.engine = engine_with(self.model, self.admission)
        mx.reset_peak_memory()

    def turn(self, prompt: list[int], answer: int = ANSWER, **fields: object) -> Turn:
        self.turns += 1
        return Turn(generate(prompt, boundaries_of(prompt), id=self.turns, max_tokens=answer, **fields))

    def begin(self, turn: Turn, until: Callable[[EngineEvent], bool]) -> Turn:
        """Up to the first event of its own that is so."""
        turn.events += self.engine.handle(turn.request)
        while not any(until(event) for event in turn.events if getattr(event, "id", None) == turn.request.id):
            assert self.engine.busy
            turn.events += self.engine.step()
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


def engine_with(model: Model, admission: Admission, cache_limit: int = 10**9, step: int = 64) -> Engine:
    options = Load(
        model_dir="", max_concurrent=4, prefill_step_tokens=step, decode_stall_target_s=30, cache_limit=cache_limit
    )
    return Engine(model.raw, 448, options, admission, DiskTier(None, "", 0), Together())


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


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a stream"])
def test_most_of_the_memory_is_kept_for_the_next_turn(deep: Model, beside: bool) -> None:
    little = Little(deep, 1 + beside)
    stream = little.turn(words(40, 9), 10**6)
    if beside:
        little.begin(stream, lambda event: isinstance(event, Prefilled) and event.done == 39)
    prompt = words(PROMPT, 1)
    first = little.ask(prompt)
    assert first.found == 0
    turns = [first]
    for seed in (2, 3):
        prompt = [*prompt, *turns[-1].answer, *words(NEXT, seed)]
        turns.append(little.ask(prompt))
        # All but the last token of the answer, which was not read.
        assert turns[-1].found >= len(prompt) - NEXT - 1
    little.check()
    assert [turn.answer for turn in turns] == [cold(deep, turn.request.prompt) for turn in turns]
    if beside:
        little.engine.handle(Cancel(stream.request.id))
        streamed = [token for turn in (stream, *turns) for token in tokens_of(turn.events, stream.request.id)]
        assert len(streamed) > 3 * ANSWER
        assert streamed == cold(deep, stream.request.prompt, len(streamed))


def test_so_is_a_prompt_whose_answer_is_told_otherwise_later(deep: Model) -> None:
    """The history drops what opens the reply, as templates do that tell no thoughts."""
    little = Little(deep)
    prompt = words(PROMPT, 1)
    little.ask(prompt)
    turns = []
    for seed in (2, 3):
        before = len(prompt) - 3
        prompt = [*prompt[:before], *words(NEXT, seed)]
        turns.append(little.ask(prompt))
        assert turns[-1].found >= before
    little.check()
    assert [turn.answer for turn in turns] == [cold(deep, turn.request.prompt) for turn in turns]


@pytest.mark.parametrize("phase", ["while it is read", "while it answers"])
def test_what_a_cancelled_turn_has_taken_comes_back(deep: Model, phase: str) -> None:
    little = Little(deep)
    prompt = words(PROMPT, 1)
    first = little.ask(prompt)
    prompt = [*prompt, *first.answer, *words(NEXT, 2)]
    found = len(prompt) - NEXT - 1
    turn = little.turn(prompt, LONG_ANSWER)
    if phase == "while it is read":
        little.begin(turn, lambda event: isinstance(event, Prefilled) and event.cached >= found)
    else:
        little.begin(turn, lambda event: not isinstance(event, Prefilled))
    assert little.engine.stats().prefix_bytes < little.admission.cost.kv_bytes(PROMPT) / 2
    little.engine.handle(Cancel(turn.request.id))
    again = little.ask(prompt)
    assert again.found >= found
    little.check()
    assert again.answer == cold(deep, prompt)


def test_the_prompt_is_kept_where_the_answer_is_not_wanted(deep: Model) -> None:
    little = Little(deep)
    prompt = words(PROMPT, 1)
    for _ in range(2):
        turn = little.ask(prompt, keep_answer=False)
    assert turn.found == PROMPT - 3
    little.check()
    assert turn.answer == cold(deep, prompt)


def test_caches_become_a_prefix_and_a_prefix_caches_in_the_memory_of_a_few_layers(deep: Model) -> None:
    layers = make_prompt_cache(deep.raw)
    tokens = words(1024, 1)
    for at in range(0, len(tokens), 64):
        deep.raw(mx.array([tokens[at : at + 64]]), cache=layers)
        kv.evaluate(layers)
    largest = max(layer.nbytes for layer in layers)
    expected = deep.raw(mx.array([[7]]), cache=kv.concatenate([(kv.extract(layers, 0, len(tokens)), 0, len(tokens))]))
    mx.eval(expected)

    @contextlib.contextmanager
    def little_memory() -> Iterator[None]:
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        yield
        assert mx.get_peak_memory() - before <= 2 * largest

    halves = [kv.Stretch(0, 600), kv.Stretch(600, len(tokens))]
    with little_memory():
        parts = kv.extract_parts(layers, halves, give_up=True)
    assert layers == [None] * 12
    given = [(segment, 0, half.stop - half.start) for segment, half in zip(parts, halves, strict=True)]
    with little_memory():
        again = kv.concatenate(given, 0, True)
    assert mx.array_equal(deep.raw(mx.array([[7]]), cache=again), expected)
