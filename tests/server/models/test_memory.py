from __future__ import annotations

from pathlib import Path

import pytest

from quantize.machine import available_memory, metal_limit
from server.errors import InsufficientMemory
from server.models.memory import Memory, weight_bytes
from server.settings.types import LifecycleSettings

GIB = 2**30


def sparse_model(folder: Path, *sizes: int) -> Path:
    for number, size in enumerate(sizes):
        with (folder / f"model-{number}.safetensors").open("wb") as file:
            file.truncate(size)
    return folder


def test_the_weights_are_the_files_that_mlx_lm_loads(tmp_path: Path) -> None:
    sparse_model(tmp_path, 3, 4)
    (tmp_path / "adapters.safetensors").write_bytes(b"12345")
    (tmp_path / "config.json").write_text("{}")
    assert weight_bytes(tmp_path) == 7


def test_a_model_that_does_not_fit_is_refused_with_both_numbers(tmp_path: Path) -> None:
    sparse_model(tmp_path, 6_000_000_000, 5_200_000_000)
    memory = Memory(LifecycleSettings(memory_headroom=1.15), lambda: 8_100_000_000)
    with pytest.raises(InsufficientMemory) as caught:
        memory.admit(tmp_path)
    assert caught.value.message == "The model needs 12.9 GB of memory, 8.1 GB is available."


def test_a_model_that_fits_with_its_headroom_is_let_in(tmp_path: Path) -> None:
    sparse_model(tmp_path, 1000)
    assert Memory(LifecycleSettings(memory_headroom=1.5), lambda: 1500).admit(tmp_path) == 1500
    with pytest.raises(InsufficientMemory):
        Memory(LifecycleSettings(memory_headroom=1.5), lambda: 1499).admit(tmp_path)


def test_the_limit_of_the_settings_replaces_what_the_system_reports(tmp_path: Path) -> None:
    sparse_model(tmp_path, 1000)
    assert Memory(LifecycleSettings(memory_headroom=1, memory_limit=1000), lambda: 0).admit(tmp_path) == 1000
    with pytest.raises(InsufficientMemory):
        Memory(LifecycleSettings(memory_headroom=1, memory_limit=999), lambda: 10**12).admit(tmp_path)


def test_this_machine_reports_some_memory() -> None:
    assert 2**20 < available_memory() < 2**50


@pytest.mark.parametrize(
    ("total", "wired_limit_mb", "share"),
    [(36 * GIB, 0, 24 * GIB), (64 * GIB, 0, 48 * GIB), (64 * GIB, 57344, 56 * GIB)],
)
def test_a_mac_gives_the_gpu_a_share_of_its_memory(total: int, wired_limit_mb: int, share: int) -> None:
    assert metal_limit(total, wired_limit_mb) == share
