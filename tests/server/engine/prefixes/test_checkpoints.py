"""Where a prompt may be resumed: cut out after the one pass that read it all, and the same to the token as a split."""

from __future__ import annotations

import random
from typing import Any

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
from server.engine_client.protocol import Load, Prefilled, Tokens
from tests.support.architectures import write_architecture
from tests.support.sliding_model import WINDOW
from tests.support.talks import Model, Talk, generate, new_talk


class Counted:
    """A model that counts the tokens of its forward passes."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.passes: list[int] = []

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        self.passes.append(tokens.size)
        logits: mx.array = self._model(tokens, cache=cache)
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = write_architecture(tmp_path_factory.mktemp("models") / "recurrent", "mamba")
    return Model(folder, load_model(folder)[0])


def new_engine(model: Any, chunk: int) -> Engine:
    options = Load(
        model_dir="", max_concurrent=8, prefill_step_tokens=chunk, cache_limit=10**9, decode_stall_target_s=60
    )
    return Engine(model, 448, options, Admission(10**10, 0, measure(model)), DiskTier(None, "", 0), Together())


def ask(engine: Engine, talk: Talk) -> tuple[list[int], int]:
    """The answer, and the tokens that were not read again."""
    engine.handle(generate(*talk.asked()))
    made: list[int] = []
    cached = 0
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Tokens):
                made += event.tokens
            elif isinstance(event, Prefilled):
                cached = max(cached, event.cached)
    return made, cached


def test_cut_and_split_and_cold_give_the_same_tokens(model: Model) -> None:
    converse(model)


def test_a_recurrent_state_is_split_and_gives_the_same_tokens(recurrent: Model) -> None:
    converse(recurrent)


def converse(model: Model) -> None:
    cut, split, cold = (new_engine(model.raw, chunk) for chunk in (2048, 16, 2048))
    ask(cut, new_talk(99))
    rng = random.Random(1)
    talk = Talk(rng).say("system", words(rng, 50)).say("user", words(rng, 60))
    for _ in range(4):
        answers = [ask(engine, talk) for engine in (cut, split)]
        assert answers[0] == answers[1]
        # Another engine each time would load again; another salt finds nothing either.
        alone, found = ask_cold(cold, talk)
        assert (answers[0][0], found) == (alone, 0)
        talk.say("assistant", answers[0][0]).say("user", words(rng, 20))


def words(rng: random.Random, count: int) -> list[int]:
    """Within the vocabulary of each model here."""
    return [rng.randrange(10, 128) for _ in range(count)]


def ask_cold(engine: Engine, talk: Talk) -> tuple[list[int], int]:
    engine.handle(generate(*talk.asked(), cache_salt=str(len(talk.tokens))))
    events = []
    while engine.busy:
        events += engine.step()
    made = [token for event in events if isinstance(event, Tokens) for token in event.tokens]
    return made, max(event.cached for event in events if isinstance(event, Prefilled))


@pytest.mark.parametrize("before", [0, 7, 3 * WINDOW])
@pytest.mark.parametrize("behind", [0, 1, WINDOW - 1, WINDOW, WINDOW + 5])
def test_a_window_cut_out_after_a_pass_goes_on_as_one_where_the_pass_ended(
    sliding: Model, before: int, behind: int
) -> None:
    tokens = new_talk(3).say("user", 4 * WINDOW).tokens[: before + 5 + behind]
    whole, split = make_prompt_cache(sliding.raw), make_prompt_cache(sliding.raw)
    if before:
        for layers in (whole, split):
            sliding.raw(mx.array([tokens[:before]]), cache=layers)
    sliding.raw(mx.array([tokens[before:]]), cache=whole)
    sliding.raw(mx.array([tokens[before : before + 5]]), cache=split)
    for following in ([4, 9, 2], [8]):
        logits = [
            sliding.raw(mx.array([following]), cache=kv.extract(layers, 0, before + 5)) for layers in (whole, split)
        ]
        assert mx.array_equal(*logits)


def test_a_window_is_not_cut_where_its_tokens_are_gone(sliding: Model) -> None:
    layers = make_prompt_cache(sliding.raw)
    for _ in range(2):
        sliding.raw(mx.array([list(range(10, 10 + 2 * WINDOW))]), cache=layers)
    assert not kv.is_resumable(kv.extract(layers, 0, WINDOW))
    assert kv.is_resumable(kv.extract(layers, 0, 3 * WINDOW))


def test_a_next_turn_sweeps_the_weights_once_and_once_more_for_its_first_token(model: Model) -> None:
    counted = Counted(model.raw)
    engine = new_engine(counted, 2048)
    talk = new_talk(4)
    ask(engine, new_talk(98))
    answer, _ = ask(engine, talk)
    talk.say("assistant", answer).say("user", 30)
    counted.passes.clear()
    engine.handle(generate(*talk.asked(), max_tokens=1))
    while engine.busy:
        engine.step()
    prefill = [tokens for tokens in counted.passes if tokens > 1]
    assert len(prefill) == 1
    assert 30 <= prefill[0] <= 30 + 3 + len(answer)


def test_what_is_found_again_has_room_for_the_rest_of_the_prompt(model: Model) -> None:
    layers = make_prompt_cache(model.raw)
    tokens = new_talk(5).tokens
    model.raw(mx.array([tokens]), cache=layers)
    segment = kv.extract(layers, 0, len(tokens))
    joined = kv.concatenate([(segment, 0, len(tokens))], room=50)
    growing = next(layer for layer in joined if kv.is_trimmable(layer))
    assert (growing.offset, growing.keys.shape[2]) == (len(tokens), len(tokens) + 50)
    model.raw(mx.array([[7] * 50]), cache=joined)
    assert growing.keys.shape[2] == len(tokens) + 50


@pytest.mark.parametrize(("answer", "passes"), [(6, 1), (60, 2)])
def test_what_ends_just_behind_what_was_found_is_no_checkpoint(recurrent: Model, answer: int, passes: int) -> None:
    """A short answer costs no state of its own, and where a state can only be kept as it is no sweep either."""
    counted = Counted(recurrent.raw)
    engine = new_engine(counted, 2048)
    rng = random.Random(6)
    talk = Talk(rng).say("system", words(rng, 50)).say("user", words(rng, 60))
    ask(engine, talk)
    end = len(talk.tokens)
    talk.say("assistant", words(rng, answer)).say("user", words(rng, 30))
    counted.passes.clear()
    _, found = ask(engine, talk)
    assert found == end
    assert len([tokens for tokens in counted.passes if tokens > 1]) == passes + 1
    assert engine._prefixes.has(talk.tokens[: end + answer]) == (passes == 2)
    assert engine._prefixes.has(talk.tokens)
