"""Whatever fails ends the request that it was done for, and no other; and its slot is free again."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from server.engine import kv
from server.engine.batch import Batch
from server.engine.engine import Engine
from server.engine.rehearsal import Together
from server.engine.steering.steering import Steering
from server.engine_client.protocol import Cancel, EngineEvent, Failed, Finished, Generate, Grammar, Sampling, Tokens
from tests.support.metal import IGNORED, failing
from tests.support.questions import engine_of
from tests.support.stepped import a, finish, tokens_of, until
from tests.support.talks import Model

PROMPT = [70 + at % 40 for at in range(100)]
BAD = 440
BUG = "something that nobody has foreseen"


def request(id: int, *, prompt: Sequence[int] = PROMPT, max_tokens: int = 8, **fields: Any) -> Generate:
    sampling = {name: fields.pop(name) for name in ("allowed", "banned") if name in fields}
    defaults: dict[str, Any] = {"stop_tokens": [], "sampling": Sampling(seed=0, temperature=0, **sampling)}
    return Generate(id=id, prompt=list(prompt), max_tokens=max_tokens, **(defaults | fields))


@pytest.fixture
def engine(model: Model) -> Engine:
    return engine_of(model.raw, 448)


def until_tokens(engine: Engine, *ids: int) -> list[EngineEvent]:
    """Its events, until each of these has drawn one."""
    missing = set(ids)

    def came(event: EngineEvent) -> bool:
        missing.difference_update({event.id} if isinstance(event, Tokens) else ())
        return not missing

    return until(engine, came)


def failures(events: Sequence[EngineEvent]) -> list[int | None]:
    return [event.id for event in events if isinstance(event, Failed)]


def finished(events: Sequence[EngineEvent]) -> list[int]:
    return sorted(event.id for event in events if isinstance(event, Finished))


@pytest.fixture
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(BUG)

    monkeypatch.setattr(kv, "extract_parts", fail)


@pytest.mark.usefixtures("nothing_is_kept")
@pytest.mark.parametrize("phase", ["prompt", "answer"])
def test_one_that_leaves_and_cannot_be_kept_takes_nobody_along(engine: Engine, phase: str) -> None:
    engine.handle(request(1, max_tokens=60))
    events = until_tokens(engine, 1)
    engine.handle(request(2, prompt=[*PROMPT, *PROMPT, *PROMPT], max_tokens=50))
    events += until_tokens(engine, 2) if phase == "answer" else engine.step()
    events += engine.handle(Cancel(2))
    events += finish(engine)
    assert failures(events) == []
    assert finished(events) == [1]
    assert len(tokens_of(events, 1)) == 60


@pytest.mark.usefixtures("nothing_is_kept")
def test_a_prompt_that_cannot_be_kept_is_answered(engine: Engine) -> None:
    engine.handle(request(1))
    events = finish(engine)
    assert (failures(events), finished(events)) == ([], [1])


def test_whoever_is_told_of_a_failure_by_another_that_leaves_holds_no_slot(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.handle(request(1, max_tokens=60))
    engine.handle(request(2, max_tokens=60))
    events = until_tokens(engine, 1, 2)

    def fail(_: Batch, id: int) -> None:
        raise RuntimeError(BUG)

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "remove", fail)
        events += engine.handle(Cancel(2))
    assert failures(events) == [1]
    assert not engine.busy
    engine.handle(request(3))
    assert finished(finish(engine)) == [3]


@pytest.mark.parametrize("at", ["_advance", "_rule_out_ends", "_overruns"])
def test_an_answer_whose_steering_fails_ends_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """In what it does with a token, in what it rules out, in whether it rules anything out."""
    real = getattr(Steering, at)

    def fails(steering: Steering, *others: Any) -> Any:
        if steering._request.id == 2 and len(steering._drawn) > 2:
            raise RuntimeError(BUG)
        return real(steering, *others)

    monkeypatch.setattr(Steering, at, fails)
    rules: dict[str, Any] = {"min_tokens": 1} if at == "_overruns" else {"banned": [[5]]}
    for id in (1, 2, 3):
        engine.handle(request(id, max_tokens=20, **rules))
    events = finish(engine)
    assert [(event.id, event.kind) for event in events if isinstance(event, Failed)] == [(2, "internal")]
    assert finished(events) == [1, 3]
    assert tokens_of(events, 1) == tokens_of(events, 3)
    assert len(tokens_of(events, 1)) == 20


def test_a_request_whose_grammar_cannot_even_be_compiled_keeps_nobody_waiting(engine: Engine) -> None:
    broken: Future[Any] = Future()
    broken.set_exception(RuntimeError(BUG))
    grammar = Grammar(text='start: "a"')
    engine._grammars.tokens = object()  # type: ignore[assignment]
    engine._grammars._compiled[grammar.text] = broken
    engine.handle(request(1, grammar=grammar))
    engine.handle(request(2))
    events: list[EngineEvent] = []
    for _ in range(100):
        events += engine.step()
    assert (failures(events), finished(events)) == ([1], [2])
    assert not engine.busy


def test_an_end_that_nobody_was_told_of_is_told_when_the_device_is_lost(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its tokens have left; so does its end, which was to be told with what is kept of it."""
    engine.handle(request(1, max_tokens=3))
    events = [event for _ in range(3) for event in until(engine, a(Tokens, 1))]

    def lose(*_: Any, **__: Any) -> None:
        raise RuntimeError(IGNORED)

    monkeypatch.setattr(Engine, "_plan", lose)
    events += engine.step()
    assert engine.lost is not None
    assert finished(events) == [1]


def test_where_each_has_passes_of_its_own_one_that_fails_ends_alone(model: Model) -> None:
    engine = engine_of(model.raw, 448, Together(prefill=False, decode=False))
    with failing(type(model.raw), BUG, BAD):
        engine.handle(request(1, max_tokens=20))
        engine.handle(request(2, max_tokens=20, allowed=[BAD]))
        engine.handle(request(3, max_tokens=20))
        events = finish(engine)
    assert failures(events) == [2]
    assert finished(events) == [1, 3]
    assert len(tokens_of(events, 1)) == len(tokens_of(events, 3)) == 20
