"""How far the weights of a folder are in memory, as it is told while they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantize.forward import loading
from quantize.forward.loading import load_folder
from tests.support.tiny_model import write_tiny_model


@pytest.mark.parametrize("part", [1, 50_000, 2**28])
def test_what_is_in_memory_grows_to_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(loading, "_PART_BYTES", part)
    told: list[tuple[int, int]] = []
    load_folder(write_tiny_model(tmp_path / "model"), lambda done, total: told.append((done, total)))
    [total] = {total for _, total in told}
    done = [done for done, _ in told]
    assert done == sorted(set(done))
    assert done[-1] == total > 0
    assert len(done) == 1 if part > total else len(done) > 1
