"""The constants of a machine, found again in passes that were made up with them; and through the real process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.engine.pass_costs import SIZES, fit, measure
from tests.support.metal import M1, M2_PRO, M4_MAX, Pace
from tests.support.running import ROOT
from tests.support.tiny_model import write_tiny_model


@pytest.mark.parametrize("pace", [M4_MAX, M2_PRO, M1])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_sweep_token_and_cliff_are_found_in_passes_that_have_them(pace: Pace, noise: float) -> None:
    wobble = {size: 1 + noise * (-1) ** at for at, size in enumerate(SIZES)}
    found = fit({size: pace.seconds(size) * wobble[size] for size in SIZES})
    assert found["sweep_s"] == pytest.approx(pace.sweep_s, rel=0.001 + 10 * noise)
    assert found["token_s"] == pytest.approx(pace.token_s, rel=0.001 + 5 * noise)
    assert found["cliff_tokens"] == pace.cliff_tokens
    assert found["cliff_factor"] == pytest.approx(pace.cliff_factor, rel=0.001 + 20 * noise)


def test_a_machine_without_a_cliff_has_none() -> None:
    pace = Pace(0.05, 0.001, cliff_factor=1)
    assert fit({size: pace.seconds(size) for size in SIZES})["cliff_tokens"] == 1


def test_with_too_few_sizes_nothing_is_claimed() -> None:
    assert set(fit({16: 1.0, 64: 2.0}).values()) == {None}


def test_the_time_for_measuring_is_kept() -> None:
    now = 0.0

    def read(size: int) -> None:
        nonlocal now
        now += M1.seconds(size) * 10

    taken = measure(read, 60, lambda: now)
    assert now < 60
    assert 0 < len(taken) < len(SIZES)
    now = 0.0
    assert set(measure(read, 1000, lambda: now)) == set(SIZES)


def test_a_real_model_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    command = [sys.executable, "-m", "server.engine.pass_costs", str(folder), "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=True)
    report = json.loads(done.stdout)
    assert set(report["chunk_seconds"]) == {str(size) for size in SIZES}
    assert report["token_s"] >= 0
    assert report["weight_bytes"] == pytest.approx((folder / "model.safetensors").stat().st_size, rel=0.01)
