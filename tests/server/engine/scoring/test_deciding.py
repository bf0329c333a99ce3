"""Questions about one prompt: the options have the log-probabilities that the bare model gives them, however read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec import structs

from server.engine.loading import load
from server.engine.rehearsal import Together, rehearse
from server.engine_client.protocol import (
    Branch,
    Cancel,
    Failed,
    Finished,
    OptionsScored,
    Prefilled,
    ScoreOptions,
    Tokens,
)
from tests.support import architecture_table
from tests.support.architectures import CHUNK_DEPENDENT, NEEDS_METAL, VOCABULARY, write_architecture
from tests.support.questions import bare_scores, engine_of, most_apart, questions, scores
from tests.support.stepped import a, finish, steps, until
from tests.support.talks import Model, generate

# Of a logprob of several tokens, in float32.
ROUNDING = 1e-3
# Two options of a token each, options of several tokens, one token of a tail, and a tail longer than a chunk.
SHAPES = [(12, (1, 1)), (7, (1, 2, 4)), (1, (3, 1)), (90, (2, 2)), (9, (1,) * 5), (9, (1, 1)), (20, (6, 1))]

SERVED = [
    name
    for name, kept in architecture_table.read()[1].items()
    if kept.refused is None and name not in CHUNK_DEPENDENT | NEEDS_METAL
]
# Full attention; latents; two kinds of recurrent state, one beside attention; windows; chunks.
FEW = ("llama", "deepseek_v3", "mamba2", "qwen3_next", "gpt_oss", "llama4")


def test_each_option_has_the_probability_that_the_bare_model_gives_it(model: Model) -> None:
    asked = questions(150, SHAPES, 448)
    found = scores(engine_of(model.raw, 448), asked)
    assert most_apart(found.logprobs, bare_scores(model.raw, asked)) < ROUNDING


def alike(asked: ScoreOptions, tails: Sequence[tuple[int, int]]) -> ScoreOptions:
    """Its questions begin alike and so do their options, again and again: (beginning, tail's length)."""
    branches = []
    for number, (head, length) in enumerate(tails):
        tail = [20 + head] * 3 + list(range(30, 30 + length)) + [100 + number]
        options = [[7, 8, 9], [7, 8, 5], [7, 10, 9, 11], [12], [7, 8, 13, 14]][number % 3 :]
        branches.append(Branch(tail, options))
    return structs.replace(asked, branches=branches)


def test_what_begins_alike_is_scored_the_same(model: Model) -> None:
    asked = alike(questions(60, SHAPES, 448), [(n % 2, 9 + n % 5) for n in range(40)] + [(n, 3) for n in range(2, 7)])
    expected = bare_scores(model.raw, asked)
    assert most_apart(scores(engine_of(model.raw, 448), asked).logprobs, expected) < ROUNDING
    alone = engine_of(model.raw, 448, Together(prefill=False, decode=False))
    assert most_apart(scores(alone, asked).logprobs, expected) < ROUNDING


@pytest.mark.parametrize("name", FEW)
def test_caches_of_every_kind_give_the_same(name: str, tmp_path: Path) -> None:
    check_architecture(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SERVED if name not in FEW])
def test_every_architecture_gives_the_same(name: str, tmp_path: Path) -> None:
    check_architecture(name, tmp_path)


def check_architecture(name: str, folder: Path) -> None:
    model, vocabulary, _ = load(write_architecture(folder, name))
    # Beyond the window of those that have one.
    asked = questions(30, [(6, (1, 1)), (9, (1, 3)), (1, (2, 1)), (5, (1, 1))], VOCABULARY)
    first_tail, options = asked.branches[1].tail, asked.branches[1].options
    asked.branches.extend(Branch([*first_tail[:8], token], options) for token in range(5, 21))
    engine = engine_of(model, vocabulary, rehearse(model, vocabulary))
    first, second = scores(engine, asked), scores(engine, asked)
    expected = bare_scores(model, asked)
    assert most_apart(first.logprobs, expected) < ROUNDING
    assert most_apart(second.logprobs, expected) < ROUNDING


def test_other_questions_find_the_prompt_that_was_read_before(model: Model) -> None:
    engine = engine_of(model.raw, 448)
    first = questions(150, SHAPES[:2], 448, id=1)
    others = questions(150, SHAPES[2:], 448, id=2)
    assert first.prompt == others.prompt
    assert scores(engine, first).cached == 0
    warm = scores(engine, others)
    # All but the last token, which a prefix never holds.
    assert warm.cached == 149
    assert most_apart(warm.logprobs, scores(engine_of(model.raw, 448), others).logprobs) < ROUNDING


def test_one_by_one_is_the_same_as_together(model: Model) -> None:
    asked = questions(60, SHAPES, 448)
    alone = scores(engine_of(model.raw, 448, Together(prefill=False, decode=False)), asked)
    assert most_apart(alone.logprobs, scores(engine_of(model.raw, 448), asked).logprobs) < ROUNDING


def test_small_chunks_are_the_same_as_large_ones(model: Model) -> None:
    asked = questions(60, SHAPES, 448)
    small = scores(engine_of(model.raw, 448, prefill_step_tokens=5), asked)
    assert most_apart(small.logprobs, scores(engine_of(model.raw, 448), asked).logprobs) < ROUNDING


def test_many_questions_take_few_passes(model: Model) -> None:
    engine = engine_of(model.raw, 448, prefill_step_tokens=512)
    scores(engine, questions(40, SHAPES, 448))
    engine.handle(questions(40, [(9, (1, 1))] * 100, 448, id=2))
    # Four groups of 32, of which each takes two passes, beside the prompt's own; not one for each question.
    assert len(list(steps(engine))) < 20


def test_an_answer_goes_on_while_questions_are_read(model: Model) -> None:
    engine = engine_of(model.raw, 448, prefill_step_tokens=16)
    engine.handle(generate(list(range(10, 30)), id=1, max_tokens=400))
    until(engine, a(Tokens, 1))
    engine.handle(questions(40, [(9, (1, 1))] * 40, 448, id=2))
    without = 0
    for events in steps(engine):
        if any(isinstance(event, OptionsScored) for event in events):
            break
        without = 0 if any(isinstance(event, Tokens) for event in events) else without + 1
        assert without <= 1


def test_questions_that_nobody_waits_for_any_more_are_forgotten_and_their_prompt_is_kept(model: Model) -> None:
    engine = engine_of(model.raw, 448, prefill_step_tokens=16)
    asked = questions(40, [(9, (1, 1))] * 40, 448, id=1)
    engine.handle(asked)
    until(engine, lambda event: isinstance(event, Prefilled) and event.done == len(asked.prompt))
    engine.step()
    engine.handle(Cancel(1))
    assert not engine.busy
    assert scores(engine, questions(40, [(3, (1, 2))], 448, id=2)).cached == 39


def test_an_unknown_token_is_refused(model: Model) -> None:
    asked = questions(10, [(3, (1, 1))], 448)
    asked.branches[0].options[1][0] = 5000
    [event] = engine_of(model.raw, 448).handle(asked)
    assert isinstance(event, Failed) and event.kind == "invalid" and "questions" in event.message


def test_the_last_event_is_the_end(model: Model) -> None:
    engine = engine_of(model.raw, 448)
    engine.handle(questions(1, [(3, (1, 2))], 448))
    events = finish(engine)
    assert isinstance(events[-2], OptionsScored) and events[-1] == Finished(1, "stop")
