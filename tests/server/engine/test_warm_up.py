"""What a process does before its first request: on a Mac more than elsewhere, and never for long."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from server.engine.device.device import Device
from server.engine.rehearsal import Together
from server.engine.warm_up import warm_up
from tests.support.metal import OUT_OF_MEMORY, FakeMetal, failing
from tests.support.talks import Model


class Passes:
    """Counts the tokens, and the sequences, of each pass through a model."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, ...]] = []
        kind, forward = type(model), type(model).__call__

        def counted(raw: Any, tokens: Any, *others: Any, **named: Any) -> Any:
            self.shapes.append(tuple(tokens.shape))
            return forward(raw, tokens, *others, **named)

        monkeypatch.setattr(kind, "__call__", counted)


def metal() -> Device:
    return Device(FakeMetal(recommended=2**30))


def test_on_metal_a_long_chunk_is_read_and_two_sequences_draw(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(model.raw, monkeypatch)
    assert warm_up(model.raw, 448, Together(), metal()) == 288
    assert (1, 256) in passes.shapes
    assert passes.shapes.count((2, 1)) >= 2


def test_a_slow_machine_is_not_kept_waiting(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(model.raw, monkeypatch)
    clock = count(0, 60)
    assert warm_up(model.raw, 448, Together(), metal(), lambda: next(clock)) == 32
    assert (1, 256) not in passes.shapes


def test_elsewhere_there_is_nothing_to_warm(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(model.raw, monkeypatch)
    assert warm_up(model.raw, 448, Together(), Device()) == 0
    assert passes.shapes == []


def test_what_the_device_fails_at_is_raised(model: Model) -> None:
    with failing(type(model.raw), OUT_OF_MEMORY, 200), pytest.raises(RuntimeError, match="Insufficient Memory"):
        warm_up(model.raw, 448, Together(), metal())
