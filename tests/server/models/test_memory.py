from __future__ import annotations

import sys
from pathlib import Path

import pytest

from quantize import machine
from quantize.device_info import device_info
from quantize.machine import HEADROOM, ask_device, available_memory, fits, mac_memory, metal_limit
from server.errors import InsufficientMemory
from server.models.memory import Memory, weight_bytes
from server.settings.types import LifecycleSettings

GIB = 2**30
MIB = 2**20


def sparse_model(folder: Path, *sizes: int) -> Path:
    for number, size in enumerate(sizes):
        with (folder / f"model-{number}.safetensors").open("wb") as file:
            file.truncate(size)
    return folder


def settings(headroom: int = HEADROOM, limit: int = 0) -> LifecycleSettings:
    return LifecycleSettings.model_validate({"memory_headroom": headroom, "memory_limit": limit})


def test_the_weights_are_the_files_that_mlx_lm_loads(tmp_path: Path) -> None:
    sparse_model(tmp_path, 3, 4)
    (tmp_path / "adapters.safetensors").write_bytes(b"12345")
    (tmp_path / "config.json").write_text("{}")
    assert weight_bytes(tmp_path) == 7


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    sparse_model(tmp_path, 6_000_000_000, 5_200_000_000)
    with pytest.raises(InsufficientMemory) as caught:
        Memory(settings(), lambda: 8_100_000_000).admit(tmp_path)
    assert caught.value.message == (
        "The model needs 11.2 GB of memory for its weights and 0.5 GB to work with; 8.1 GB is available."
    )


def test_a_model_that_fits_with_its_headroom_is_let_in(tmp_path: Path) -> None:
    sparse_model(tmp_path, 1000)
    assert Memory(settings(MIB), lambda: MIB + 1000).admit(tmp_path) == MIB + 1000
    with pytest.raises(InsufficientMemory):
        Memory(settings(MIB), lambda: MIB + 999).admit(tmp_path)


def test_the_limit_of_the_settings_replaces_what_the_system_reports(tmp_path: Path) -> None:
    sparse_model(tmp_path, 1000)
    assert Memory(settings(MIB, 2 * MIB), lambda: 0).admit(tmp_path) == 2 * MIB
    with pytest.raises(InsufficientMemory):
        Memory(settings(MIB, MIB), lambda: 10**12).admit(tmp_path)


def test_the_headroom_of_the_settings_is_that_of_plans() -> None:
    assert LifecycleSettings().memory_headroom == HEADROOM


def test_the_headroom_is_an_amount_and_no_factor_any_more() -> None:
    with pytest.raises(ValueError, match="memory_headroom"):
        LifecycleSettings.model_validate({"memory_headroom": 1.15})


def test_this_machine_reports_some_memory() -> None:
    assert 2**20 < available_memory() < 2**50


# Bytes that Macs have reported, as `recommendedMaxWorkingSetSize` or in MB of it, rounded.
@pytest.mark.parametrize(
    ("memory", "reported"),
    [
        (8, 5_726_000_000),
        (16, 11_453_000_000),
        (24, 17_180_000_000),
        (32, 22_906_000_000),
        (36, 28_991_000_000),
        (64, 51_540_000_000),
        (96, 77_309_000_000),
        (128, 115_449_000_000),
        (256, 239_144_000_000),
    ],
)
def test_the_table_of_macs_says_what_macs_have_reported(memory: int, reported: int) -> None:
    assert metal_limit(memory * GIB) == pytest.approx(reported, rel=0.001)


def test_a_mac_is_asked_and_the_table_used_only_when_it_does_not_answer() -> None:
    said = {"max_recommended_working_set_size": 120 * GIB}
    assert mac_memory(128 * GIB, lambda: said, lambda: 0) == 120 * GIB
    assert mac_memory(16 * GIB, dict, lambda: 0) == metal_limit(16 * GIB)
    assert mac_memory(64 * GIB, dict, lambda: 57344) == 56 * GIB


def test_the_device_is_asked_in_a_process_of_its_own() -> None:
    assert ask_device() == device_info()
    assert ask_device()["device_name"]


def test_a_device_that_cannot_be_asked_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert ask_device() == {}
    monkeypatch.setattr(sys, "executable", "/bin/true")
    assert ask_device() == {}


def test_the_model_for_16_gb_macs_fits_one_and_the_larger_one_does_not() -> None:
    grants = metal_limit(16 * GIB)
    assert fits(10_320_000_000, grants)
    assert not fits(11_990_000_000, grants)
    assert machine.sysctl_number("no.such.name") == 0
