"""When the machine is short of memory, what is only kept for later goes first. The levels are made up."""

from __future__ import annotations

import pytest

from server.engine.device.pressure import Pressure, pressure
from server.engine.engine import Engine
from server.engine_client.protocol import Finished, Generate, Sampling
from tests.support.questions import engine_of
from tests.support.stepped import a, until
from tests.support.talks import Model

PROMPT = [70 + at % 40 for at in range(100)]


@pytest.mark.parametrize(
    ("said", "level"),
    [
        (1, Pressure.NORMAL),
        (2, Pressure.WARNING),
        (4, Pressure.CRITICAL),
        (None, Pressure.NORMAL),
        (3, Pressure.NORMAL),
    ],
)
def test_the_level_is_what_the_system_says_and_an_unknown_one_is_none(said: int | None, level: Pressure) -> None:
    assert pressure(lambda: said) is level


def test_elsewhere_there_is_none() -> None:
    assert pressure() is Pressure.NORMAL


def answer(engine: Engine, id: int) -> None:
    prompt = [id + 5, *PROMPT]
    engine.handle(
        Generate(id=id, prompt=prompt, max_tokens=4, stop_tokens=[], sampling=Sampling(seed=0, temperature=0))
    )
    until(engine, a(Finished))


def test_prefixes_shrink_under_pressure_and_come_back_after_it(model: Model) -> None:
    engine = engine_of(model.raw, 448)
    for id in range(8):
        answer(engine, id)
    kept = engine.stats().prefix_bytes
    engine = engine_of(model.raw, 448, cache_limit=kept)
    for id in range(8):
        answer(engine, id)
    engine.yield_to(Pressure.WARNING)
    assert 0 < engine.stats().prefix_bytes <= kept / 4
    answer(engine, 9)
    assert engine.stats().prefix_bytes <= kept / 4
    engine.yield_to(Pressure.CRITICAL)
    assert engine.stats().prefix_bytes == 0
    answer(engine, 10)
    assert engine.stats().prefix_bytes == 0
    engine.yield_to(Pressure.NORMAL)
    for id in range(20, 24):
        answer(engine, id)
    assert engine.stats().prefix_bytes > kept / 4
