"""What a turn has taken of a long prompt that memory holds once is there for the next one, however the turn ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model

from server.engine import kv
from server.engine.batch import Batch
from server.engine.prefixes.disk_tier import DiskTier, StoredSegment
from server.engine.prefixes.disk_work import PrefixWriter
from server.engine.steering.steering import Steering
from server.engine_client.protocol import (
    Boundary,
    Branch,
    Cancel,
    EngineEvent,
    Failed,
    Finished,
    Grammar,
    OptionsScored,
    Prefilled,
    Sampling,
    ScoreOptions,
    Tokens,
)
from tests.support.architectures import write_architecture
from tests.support.little_memory import LONG_ANSWER, NEXT, PROMPT, Little, cold, words
from tests.support.metal import failing
from tests.support.questions import bare_scores, engine_of, most_apart
from tests.support.stepped import finish, tokens_of, until
from tests.support.talks import Model, generate

BUG = "something that nobody has foreseen"
BAD = 440


def failed(event: EngineEvent) -> bool:
    return isinstance(event, Failed)


def second_prompt(little: Little, *, bad: bool = False) -> tuple[list[int], int]:
    """After a first turn; and how much of it there is to find."""
    prompt = words(PROMPT, 1)
    before = [*prompt, *little.ask(prompt).answer]
    new = [token if token != BAD else 9 for token in words(NEXT, 2)]
    return [*before, *new[:10], *([BAD] if bad else []), *new[10:]], len(before) - 1


def check_found_again(little: Little, prompt: list[int], found: int) -> None:
    again = little.ask(prompt)
    assert again.found >= found
    little.check()
    assert again.answer == cold(little.model, prompt)


def all_is_taken(little: Little) -> None:
    assert little.engine.stats().prefix_bytes < little.admission.cost.kv_bytes(PROMPT) / 2


def test_a_turn_whose_grammar_cannot_be_used_gives_it_back(deep: Model) -> None:
    little = Little(deep)
    prompt, found = second_prompt(little)
    turn = little.begin(little.turn(prompt, grammar=Grammar(text='start: "a"')), failed)
    assert turn.found >= found
    check_found_again(little, prompt, found)


def test_so_does_one_whose_steering_fails(deep: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    little = Little(deep)
    prompt, found = second_prompt(little)
    real = Steering._advance

    def fails(steering: Steering, *others: Any) -> Any:
        if len(steering._drawn) > 2:
            raise RuntimeError(BUG)
        return real(steering, *others)

    monkeypatch.setattr(Steering, "_advance", fails)
    turn = little.turn(prompt, LONG_ANSWER, sampling=Sampling(seed=0, temperature=0, banned=[[5]]))
    little.begin(turn, failed)
    assert len(turn.answer) > 2
    check_found_again(little, prompt, found)


def test_so_does_one_that_the_model_cannot_read_on(deep: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is logged is kept by pytest, with all that the traceback holds.
    monkeypatch.setattr(logging.getLogger("configi.engine"), "disabled", True)
    little = Little(deep)
    prompt, found = second_prompt(little, bad=True)
    with failing(type(deep.raw), BUG, BAD):
        little.begin(little.turn(prompt), failed)
    check_found_again(little, prompt, found)


@pytest.mark.parametrize("phase", ["while it is read", "while it answers"])
def test_so_does_one_that_ends_for_want_of_memory(deep: Model, phase: str) -> None:
    little = Little(deep)
    prompt, found = second_prompt(little)
    turn = little.turn(prompt, LONG_ANSWER)
    is_read = phase == "while it answers"
    little.begin(turn, lambda event: isinstance(event, Tokens if is_read else Prefilled))
    if not turn.found:
        turn.events += until(little.engine, lambda event: isinstance(event, Prefilled) and event.cached > 0)
    all_is_taken(little)
    taken_by_others = mx.zeros(little.ceiling - mx.get_active_memory() - 10**5, mx.uint8)
    mx.eval(taken_by_others)
    turn.events += little.engine.step()
    del taken_by_others
    assert [event.kind for event in turn.events if isinstance(event, Failed)] == ["memory"]
    mx.reset_peak_memory()
    check_found_again(little, prompt, found)


def asked_about(prompt: list[int], id: int) -> ScoreOptions:
    branches = [Branch([20, 21, at], [[7, 8], [9]]) for at in range(30, 34)]
    return ScoreOptions(id=id, prompt=prompt, branches=branches, boundaries=[Boundary(len(prompt), "user")])


def test_questions_give_it_back(deep: Model) -> None:
    little = Little(deep, answer=ScoreOptions.max_tokens)
    prompt, found = second_prompt(little)
    asked = asked_about(prompt, 100)
    little.engine.handle(asked)
    events = finish(little.engine)
    [scored] = [event.logprobs for event in events if isinstance(event, OptionsScored)]
    assert max(event.cached for event in events if isinstance(event, Prefilled)) >= found
    assert isinstance(events[-1], Finished)
    check_found_again(little, prompt, len(prompt) - 2)
    assert most_apart(scored, bare_scores(deep.raw, asked)) < 1e-2


def test_for_the_next_turn_they_do_so_where_windows_cannot_be_kept_twice(deep: Model) -> None:
    little = Little(deep)
    prompt, _ = second_prompt(little)
    little.engine.handle(asked_about(prompt, 100))
    finish(little.engine)
    check_found_again(little, [*prompt, *words(NEXT, 3)], len(prompt) - 1)


def test_and_for_the_same_questions_again(deep: Model) -> None:
    little = Little(deep)
    prompt, _ = second_prompt(little)
    scored = []
    for id in (100, 101):
        asked = asked_about(prompt, id)
        little.engine.handle(asked)
        events = finish(little.engine)
        scored += [event.logprobs for event in events if isinstance(event, OptionsScored)]
    assert max(event.cached for event in events if isinstance(event, Prefilled)) >= len(prompt) - 1
    assert len(scored) == 2
    assert all(most_apart(one, bare_scores(deep.raw, asked)) < 1e-2 for one in scored)


def test_so_do_questions_that_nobody_waits_for_any_more(deep: Model) -> None:
    little = Little(deep, answer=ScoreOptions.max_tokens)
    prompt, found = second_prompt(little)
    little.engine.handle(asked_about(prompt, 100))
    until(little.engine, lambda event: isinstance(event, Prefilled) and event.done == len(prompt))
    little.engine.handle(Cancel(100))
    check_found_again(little, prompt, found)


@pytest.mark.parametrize("name", ["qwen3_5", "lfm2"])
@pytest.mark.parametrize("ends", ["answered", "cancelled", "refused"])
def test_layers_with_one_state_give_it_back_too(name: str, ends: str, tmp_path: Path) -> None:
    model = Model(tmp_path, load_model(write_architecture(tmp_path, name))[0])
    little = Little(model)
    prompt = [5 + token % 20 for token in words(PROMPT, 1)]
    before = [*prompt, *little.ask(prompt).answer]
    prompt = [*before, *([7, 9] * (NEXT // 2))]
    grammar = Grammar(text='start: "a"') if ends == "refused" else None
    turn = little.turn(prompt, LONG_ANSWER, grammar=grammar)
    until: dict[str, Callable[[EngineEvent], bool]] = {
        "answered": lambda event: isinstance(event, Finished),
        "cancelled": lambda event: isinstance(event, Tokens),
        "refused": failed,
    }
    little.begin(turn, until[ends])
    little.engine.handle(Cancel(turn.request.id))
    little.engine.step()
    assert little.ask(prompt).found >= len(before) - 1


@pytest.mark.parametrize("name", ["qwen3_5", "lfm2"])
def test_questions_give_back_the_state_that_was_there_before_they_were_read(name: str, tmp_path: Path) -> None:
    model = Model(tmp_path, load_model(write_architecture(tmp_path, name))[0])
    little = Little(model, answer=ScoreOptions.max_tokens)
    prompt = [5 + token % 20 for token in words(PROMPT, 1)]
    end = len(prompt) - 3
    branches = [Branch([*range(20, 28), at], [[7, 8], [9]]) for at in range(30, 34)]
    little.engine.handle(ScoreOptions(id=100, prompt=prompt, branches=branches, boundaries=[Boundary(end, "user")]))
    finish(little.engine)
    prompt = [*prompt[:end], 7, 9]
    again = little.ask(prompt)
    assert again.found >= end
    assert again.answer == cold(model, prompt)


# ---- with a disk


def test_what_is_on_disk_too_is_not_copied_beside_the_caches_that_it_has_moved_into(
    deep: Model, tmp_path: Path
) -> None:
    little = Little(deep, disk=DiskTier(tmp_path, "model", 10**9))
    prompt, found = second_prompt(little)
    while little.engine.write_one():
        little.engine._prefixes.disk._writer.wait(60)
    check_found_again(little, prompt, found)
    mx.reset_peak_memory()
    assert little.ask([*prompt, *words(NEXT, 3)]).found >= len(prompt) - 3
    little.check()


def test_what_is_being_written_moves_when_it_is(deep: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then the one who writes holds it."""
    waited = threading.Event()

    class Late(DiskTier):
        def write(self, *arguments: Any) -> StoredSegment | None:
            assert waited.wait(60)
            return super().write(*arguments)

    real = PrefixWriter.wait

    def wait(writer: PrefixWriter, seconds: float) -> None:
        waited.set()
        real(writer, seconds)

    monkeypatch.setattr(PrefixWriter, "wait", wait)
    little = Little(deep, disk=Late(tmp_path, "model", 10**9))
    prompt, found = second_prompt(little)
    assert little.engine.write_one()
    check_found_again(little, prompt, found)
    waited.set()


# ---- what cannot be kept


def test_a_batch_whose_caches_cannot_be_parted_is_not_decoded_on(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What MLX could not compute it would take for computed."""
    engine = engine_of(model.raw, 448)
    for id, length in ((1, 60), (2, 3)):
        engine.handle(generate([70 + at for at in range(50)], id=id, max_tokens=length))
    real = Batch.settle

    def fails(batch: Batch, *others: Any) -> None:
        def evaluate(_: Any) -> None:
            raise RuntimeError(BUG)

        with monkeypatch.context() as patch:
            patch.setattr(kv, "evaluate", evaluate)
            real(batch, *others)

    monkeypatch.setattr(Batch, "settle", fails)
    events = finish(engine)
    assert [event.id for event in events if isinstance(event, Finished)] == [2]
    assert [event.id for event in events if isinstance(event, Failed)] == [1]
    assert len(tokens_of(events, 2)) == 3


def test_a_prompt_that_cannot_be_set_aside_is_answered(deep: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError(BUG)

    monkeypatch.setattr(kv, "states_at", fails)
    little = Little(deep)
    prompt = words(PROMPT, 1)
    assert little.ask(prompt).answer == cold(deep, prompt)


def test_what_runs_when_the_engine_is_closed_is_kept(deep: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    little = Little(deep)
    prompt, found = second_prompt(little)
    little.begin(little.turn(prompt, LONG_ANSWER), lambda event: isinstance(event, Tokens))
    all_is_taken(little)
    little.engine.close(0)
    assert little.engine.stats().prefix_bytes > little.admission.cost.kv_bytes(found) * 0.9
