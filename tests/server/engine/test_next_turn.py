"""A prompt that takes most of the memory there is, and its next turn: kept, found, and never above the ceiling."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from server.engine import kv
from server.engine_client.protocol import Cancel, Prefilled
from tests.support.little_memory import ANSWER, LONG_ANSWER, NEXT, PROMPT, Little, cold, words
from tests.support.stepped import tokens_of
from tests.support.talks import Model


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
