"""A forward pass that is evaluated some layers at a time: the same bits, and a way back while it is under way."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model

from server.engine import checkpoint_keeping, kv, prefill_queue, reading
from server.engine import engine as engine_module
from server.engine.admission import Admission
from server.engine.batch import Batch
from server.engine.cost_model import measure
from server.engine.device.device import Device
from server.engine.engine import Engine
from server.engine.prefill import Prefill
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.prefixes.prefix_cache import PrefixCache
from server.engine.rehearsal import Together
from server.engine_client.protocol import Cancel, EngineEvent, Finished, Load, Prefilled, Tokens
from tests.support.architectures import write_architecture
from tests.support.sliding_model import WINDOW
from tests.support.stepped import a, finish, steps, tokens_of, until
from tests.support.talks import Model, generate, new_talk


class Clock:
    """In place of the module `time`."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def taking(self, seconds: float, work: Any) -> Any:
        """`work`, which takes so long."""

        def slow(*args: Any, **others: Any) -> Any:
            self.now += seconds
            return work(*args, **others)

        return slow


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (engine_module, prefill_queue, reading, checkpoint_keeping):
        monkeypatch.setattr(module, "time", clock)
    return clock


def prefill_of(model: Any, tokens: list[int], first: int = 0) -> Prefill:
    prefill = Prefill(model, generate([*tokens, 1]))
    prefill.start(None, 0)
    if first:
        prefill.read(first)
    return prefill


def following(model: Any, layers: Any) -> mx.array:
    logits: mx.array = model(mx.array([[9, 4, 7]]), cache=layers)
    return logits


@pytest.mark.parametrize("first", [0, 1, 5, WINDOW, 3 * WINDOW])
def test_a_pass_in_pieces_gives_the_bits_of_a_whole_one(model: Model, first: int) -> None:
    tokens = new_talk(41).tokens
    whole, pieces = (prefill_of(model.raw, tokens, first) for _ in range(2))
    whole.read(whole.unread)
    pieces.begin(pieces.unread)
    while pieces.under_way is not None:
        assert pieces.done == first
        pieces.go_on(1)
    assert pieces.done == whole.done == len(tokens)
    assert mx.array_equal(following(model.raw, pieces.layers), following(model.raw, whole.layers))


@pytest.mark.parametrize("evaluated", [0, 1, 2])
@pytest.mark.parametrize("first", [0, 5, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
@pytest.mark.parametrize("size", [1, 7, 2 * WINDOW])
def test_a_pass_that_is_cancelled_leaves_the_caches_of_before(
    sliding: Model, first: int, evaluated: int, size: int
) -> None:
    tokens = new_talk(42).say("user", 4 * WINDOW).tokens
    undone, reference = (prefill_of(sliding.raw, tokens, first) for _ in range(2))
    undone.begin(size)
    if evaluated:
        undone.go_on(evaluated)
    undone.undo()
    assert undone.done == first
    kept = [kv.extract(prefill.layers, 0, first) if first else prefill.layers for prefill in (undone, reference)]
    for layers in (kept, [undone.layers, reference.layers]):
        assert mx.array_equal(*(following(sliding.raw, each) for each in layers))


def test_recurrent_layers_that_were_evaluated_have_no_way_back(tmp_path: Path) -> None:
    model, _ = load_model(write_architecture(tmp_path, "mamba"))
    prefill = prefill_of(model, list(range(10, 40)), 10)
    prefill.begin(10)
    prefill.undo()
    assert prefill.done == 10
    prefill.begin(10)
    prefill.go_on(1)
    prefill.undo()
    assert (prefill.done, prefill.layers) == (0, [])


class WorkingAhead(Device):
    works_ahead = True


def engine_with(model: Model, target_s: float = 1e-9, device: Device | None = None) -> Engine:
    """So short a target that a step is one layer."""
    options = Load(
        model_dir="", max_concurrent=8, prefill_step_tokens=64, cache_limit=10**9, decode_stall_target_s=target_s
    )
    admission = Admission(10**10, 0, measure(model.raw))
    return Engine(model.raw, 448, options, admission, DiskTier(None, "", 0), Together(), device)


def test_streams_advance_and_short_questions_are_read_between_the_layers_of_a_long_prompt(model: Model) -> None:
    engine = engine_with(model)
    talks = [new_talk(43), new_talk(44).say("user", 700), new_talk(45)]
    engine.handle(generate(*talks[0].asked(), id=0, max_tokens=400))
    events = until(engine, a(Tokens, 0))
    engine.handle(generate(*talks[1].asked(), id=1))
    engine.step()
    engine.handle(generate(*talks[2].asked(), id=2))
    events += finish(engine)
    order = [event.id for event in events if isinstance(event, Tokens) and event.id]
    assert order.index(2) < order.index(1)
    before = [event.id for event in events if isinstance(event, Tokens)]
    assert before[: before.index(1)].count(0) >= 10
    for id in (1, 2):
        assert tokens_of(events, id) == model.greedy(talks[id].asked()[0])


@pytest.mark.parametrize("device", [Device(), WorkingAhead()])
def test_no_token_that_was_drawn_waits_for_a_piece_of_a_prompt(
    model: Model, device: Device, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a piece is begun, what the device was given to decode is told of, by steps before."""
    # A piece is one layer, and as long as decoding is for its turn.
    monkeypatch.setattr(Batch, "step", clock.taking(0.01, Batch.step))
    monkeypatch.setattr(Prefill, "go_on", clock.taking(0.03, Prefill.go_on))
    engine = engine_with(model, 0.05, device)
    engine.handle(generate(*new_talk(43).asked(), id=0, max_tokens=40))
    until(engine, a(Tokens, 0))
    unread: list[bool] = []
    read = engine._prefills.read

    def watched(*args: Any, **others: Any) -> Any:
        unread.append(engine._batch.under_way)
        return read(*args, **others)

    monkeypatch.setattr(engine._prefills, "read", watched)
    engine.handle(generate(*new_talk(44).say("user", 300).asked(), id=1))
    kinds: list[set[type]] = []
    for events in steps(engine):
        kinds.append({type(event) for event in events if not isinstance(event, Prefilled) or event.done})
        if len(unread) == 9:
            break
    assert unread == [False] * 9
    assert {Tokens, Prefilled} not in kinds
    # One turn each.
    assert kinds[-8:] == [{Prefilled}, {Tokens}] * 4 or kinds[-8:] == [{Tokens}, {Prefilled}] * 4


def test_the_end_of_an_answer_is_told_when_it_is_kept_and_its_last_token_before(model: Model) -> None:
    engine = engine_with(model, 10.0)
    engine.handle(generate(*new_talk(43).asked(), id=0, max_tokens=4))
    told = [
        [type(event) for event in events] for events in steps(engine) if events and not isinstance(events[0], Prefilled)
    ]
    assert told == [[Tokens]] * 4 + [[Finished]]
    assert engine.stats().prefix_bytes > 0


def test_who_leaves_after_the_last_token_hears_no_end_and_is_kept(model: Model) -> None:
    engine = engine_with(model, 10.0)
    talk = new_talk(43)
    engine.handle(generate(*talk.asked(), id=0, max_tokens=4))
    events = [event for _ in range(4) for event in until(engine, a(Tokens, 0))]
    engine.handle(Cancel(0))
    assert finish(engine) == []
    assert not engine.busy
    prompt, boundaries = talk.asked()
    engine.handle(generate([*prompt, *tokens_of(events, 0), 9], boundaries, id=1))
    assert max(e.cached for e in finish(engine) if isinstance(e, Prefilled)) == len(prompt) + 4


def test_a_prompt_that_begins_from_much_that_is_kept_leaves_its_piece_for_later(
    model: Model, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying what was read before is part of the gap that streams notice."""
    monkeypatch.setattr(Batch, "step", clock.taking(0.05, Batch.step))
    engine = engine_with(model, 0.4)
    talk = new_talk(43).say("user", 40)
    engine.handle(generate(*talk.asked(), id=0))
    finish(engine)
    engine.handle(generate(*new_talk(44).asked(), id=1, max_tokens=40))
    until(engine, a(Tokens, 1))
    monkeypatch.setattr(kv, "concatenate", clock.taking(0.3, kv.concatenate))
    engine.handle(generate(*talk.say("assistant", 2).say("user", 30).asked(), id=2))
    begun = until(engine, lambda event: isinstance(event, Prefilled) and event.cached > 0)[-1]
    assert isinstance(begun, Prefilled)
    assert begun.done == begun.cached
    # The streams go on before anything is read.
    assert tokens_of(engine.step(), 1)
    assert [event.done > begun.done for event in engine.step() if isinstance(event, Prefilled)] == [True]


def test_several_that_begin_from_much_that_is_kept_do_not_do_so_in_one_step(
    model: Model, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They came together and could be read together: the stream beside them waits for no more copies than one at a
    time takes."""
    monkeypatch.setattr(Batch, "step", clock.taking(0.05, Batch.step))
    engine = engine_with(model, 0.4)
    talks = [new_talk(50 + id).say("user", 40) for id in range(5)]
    for id, talk in enumerate(talks):
        engine.handle(generate(*talk.asked(), id=id))
        finish(engine)
    engine.handle(generate(*new_talk(60).asked(), id=9, max_tokens=60))
    until(engine, a(Tokens, 9))
    monkeypatch.setattr(kv, "concatenate", clock.taking(0.16, kv.concatenate))
    for id, talk in enumerate(talks):
        engine.handle(generate(*talk.say("assistant", 2).say("user", 6).asked(), id=10 + id))
    drawn, events = [clock.now], list[EngineEvent]()
    for step in steps(engine):
        events += step
        drawn += [clock.now] if tokens_of(step, 9) else []
    assert max(later - earlier for earlier, later in pairwise(drawn)) <= 0.4
    assert all(any(e.cached for e in events if isinstance(e, Prefilled) and e.id == 10 + id) for id in range(5))


def test_what_follows_a_prompts_last_layer_is_part_of_the_gap(
    model: Model, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keeping the prompt, and joining those that decode."""
    engine = engine_with(model, 0.4)
    monkeypatch.setattr(Batch, "step", clock.taking(0.05, Batch.step))
    monkeypatch.setattr(PrefixCache, "store", clock.taking(0.1, PrefixCache.store))
    go_on = Prefill.go_on

    def slow(prefill: Prefill, layers: int) -> None:
        clock.now += 0.1 * layers
        go_on(prefill, layers)

    monkeypatch.setattr(Prefill, "go_on", slow)
    engine.handle(generate(*new_talk(43).asked(), id=0, keep_answer=False))
    finish(engine)
    engine.handle(generate(*new_talk(44).asked(), id=1, max_tokens=40, keep_answer=False))
    until(engine, a(Tokens, 1))
    drawn_at, gaps = clock.now, [0.0]
    engine.handle(generate(*new_talk(45).asked(), id=2, keep_answer=False))
    for events in steps(engine):
        if tokens_of(events, 1):
            gaps.append(clock.now - drawn_at)
            drawn_at = clock.now
        if tokens_of(events, 2):
            break
    assert 0.2 < max(gaps) <= 0.4


def test_prompts_do_not_take_turns_as_often_as_a_newcomer_is_looked_for(
    model: Model, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_with(model, 0.4)
    go_on, read = Prefill.go_on, list[int]()

    def slow(prefill: Prefill, layers: int) -> None:
        clock.now += 0.15 * layers
        read.append(prefill.id)
        go_on(prefill, layers)

    monkeypatch.setattr(Prefill, "go_on", slow)
    engine.handle(generate(*new_talk(43).asked(), id=0))
    finish(engine)
    read.clear()
    engine.handle(generate(*new_talk(44).asked(), id=1, client="a"))
    engine.handle(generate(*new_talk(45).say("user", 700).asked(), id=2, client="b"))
    assert any(2 in read for _ in steps(engine))
    assert read[:-1] == [1] * len(model.raw.layers)
    # And whoever comes is looked at between the layers.
    engine.handle(generate(new_talk(46).asked()[0][:9], id=3, client="c"))
    assert any(3 in read for _ in steps(engine))
    assert read[-2:] == [2, 3]


def test_progress_is_told_between_the_layers_too(model: Model) -> None:
    engine = engine_with(model)
    engine.handle(generate(*new_talk(48).say("user", 60).asked()))
    events = finish(engine)
    done = [event.done for event in events if isinstance(event, Prefilled)]
    assert done == sorted(done)
    assert len(done) > 2 * 3
    assert done[-1] == len(new_talk(48).say("user", 60).tokens) + 2


def test_what_was_read_before_a_cancelled_pass_is_kept(model: Model) -> None:
    engine = engine_with(model)
    talk = new_talk(46).say("user", 300)
    engine.handle(generate(*talk.asked()))
    until(engine, lambda event: isinstance(event, Prefilled) and event.done >= 120)
    engine.step()
    engine.handle(Cancel(0))
    engine.handle(generate(*talk.asked(), id=1))
    events = finish(engine)
    assert max(event.cached for event in events if isinstance(event, Prefilled)) >= 50
    assert tokens_of(events, 1) == model.greedy(talk.asked()[0])


def test_a_pass_under_way_copies_no_cache(model: Model) -> None:
    """What is evaluated is let go before, so that MLX writes into the buffer that is there."""
    prefill = prefill_of(model.raw, new_talk(47).tokens, 10)
    growing = [index for index, layer in enumerate(prefill.layers) if kv.is_trimmable(layer)]
    prefill.begin(20)
    assert all(prefill.under_way.before[index] is not None for index in growing)  # type: ignore[union-attr]
    under_way = prefill.under_way
    prefill.go_on(len(prefill.layers))
    assert under_way is not None
    assert under_way.before == [None] * len(prefill.layers)
