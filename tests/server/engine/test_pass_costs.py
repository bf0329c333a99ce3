"""The constants of a machine, found again in passes that were made up with them; and through the real process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.engine import step_costs
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


def test_what_a_row_more_takes_is_found_in_steps() -> None:
    # As measured on an M2 Pro by others: nine rows 6.13 times as slow as one.
    found = step_costs.fit({rows: 0.02 * (1 + 0.641 * (rows - 1)) for rows in step_costs.ROWS})
    assert found == {"decode_s": 0.02, "row_share": pytest.approx(0.641)}
    assert step_costs.fit({1: 0.02}) == {"decode_s": 0.02, "row_share": None}
    assert step_costs.fit({}) == {"decode_s": None, "row_share": None}


def test_the_time_for_steps_is_kept_and_few_rows_come_first() -> None:
    now = 0.0

    def step_s(kind: str, rows: int) -> float:
        nonlocal now
        now += 7 * rows
        return float(rows)

    taken = step_costs.measure(step_s, 60, lambda: now)
    assert now <= 60
    assert taken == {"greedy": {1: 1, 2: 2}, "sampled": {1: 1, 2: 2}, "logprobs": {1: 1}}


def test_a_real_model_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    command = [sys.executable, "-m", "server.engine.pass_costs", str(folder), "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=True)
    report = json.loads(done.stdout)
    assert set(report["chunk_seconds"]) == {str(size) for size in SIZES}
    assert report["token_s"] >= 0
    assert {kind: set(taken) for kind, taken in report["step_seconds"].items()} == {
        kind: {"1", "2", "4", "8"} for kind in ("greedy", "sampled", "logprobs")
    }
    assert report["decode_s"] == report["step_seconds"]["greedy"]["1"] > 0
    assert report["row_share"] >= 0
    assert report["weight_bytes"] == pytest.approx((folder / "model.safetensors").stat().st_size, rel=0.01)
