"""Defaults by the chip's name, and how they reach MLX."""

from __future__ import annotations

import pytest

from server.settings import chip
from server.settings.chip import ChipDefaults, defaults_here, defaults_of, metal_environment
from server.settings.types import EngineSettings


@pytest.mark.parametrize(
    ("brand", "slots", "ops"),
    [
        ("Apple M1", 4, 1000),
        ("Apple M2 Pro", 4, 1000),
        ("Apple M4 Max", 8, 1000),
        ("Apple M5 Max", 8, 0),
        ("Apple M10", 8, 0),
        ("Intel(R) Core(TM) i9", 8, 0),
        ("", 8, 0),
    ],
)
def test_a_chip_has_the_defaults_of_its_generation(brand: str, slots: int, ops: int) -> None:
    assert (defaults_of(brand).max_concurrent, defaults_of(brand).command_buffer_ops) == (slots, ops)


def test_what_is_set_goes_before_the_chip_and_what_the_user_exported_before_both() -> None:
    assert metal_environment(0, 0, {"A": "b"}) == {"A": "b"}
    exported = {"MLX_MAX_OPS_PER_BUFFER": "50"}
    assert metal_environment(1000, 400, exported) == {"MLX_MAX_OPS_PER_BUFFER": "50", "MLX_MAX_MB_PER_BUFFER": "400"}


def test_zero_slots_are_those_of_this_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chip, "_brand", lambda: "Apple M1")
    defaults_here.cache_clear()
    try:
        assert [EngineSettings().max_concurrent, EngineSettings(max_concurrent=6).max_concurrent] == [4, 6]
        assert defaults_here() == ChipDefaults(4, 1000, 400)
    finally:
        defaults_here.cache_clear()
