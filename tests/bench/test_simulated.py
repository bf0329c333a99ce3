"""The simulated Mac: its clock, what passes cost, when the host waits, and that the engine runs on it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.simulated import scenarios
from bench.simulated.chips import CHIPS, measured
from bench.simulated.clients import Ask, Client
from bench.simulated.clock import virtual_time
from bench.simulated.machine import machine
from server.engine import engine
from tests.support.running import ROOT

M4_MAX, M2_PRO, M1 = CHIPS


def test_the_engine_sees_the_virtual_clock_and_then_the_real_one_again() -> None:
    with virtual_time() as clock:
        clock.sleep(7.5)
        assert engine.time.monotonic() == 7.5
    assert engine.time is time


def test_a_small_chunk_costs_a_sweep_too_and_below_the_cliff_more_for_each_token() -> None:
    assert M2_PRO.prefill_s(64) == pytest.approx(0.060 + 64 * 0.00362)
    assert M2_PRO.prefill_s(63) > M2_PRO.prefill_s(64)
    assert M1.ideal_ttft_s(4000) == pytest.approx(22, rel=0.01)


def test_a_device_is_what_the_doctor_measured(tmp_path: Path) -> None:
    file = tmp_path / "doctor.json"
    found = {"sweep_s": 0.03, "token_s": 0.001, "cliff_tokens": 32, "cliff_factor": 3, "recommended_bytes": 1145}
    file.write_text(json.dumps(found | {"decode_s": 0.02, "row_share": 0.5, "os": "26"}))
    chip = measured(file)
    assert (chip.prefill_s(32), chip.memory_bytes) == (pytest.approx(0.062), 1145)
    assert chip.prefill_s(10) == pytest.approx(0.03 + 10 * 0.003)
    assert [chip.decode_step_s(rows) for rows in (1, 3)] == pytest.approx([0.02, 0.04])


def test_what_the_doctor_has_not_measured_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "doctor.json"
    file.write_text('{"sweep_s": null, "token_s": null, "cliff_tokens": null, "cliff_factor": null}')
    command = [sys.executable, "-m", "bench.simulated", "--device", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "doctor --json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_lone_stream_advances_by_one_decode_step_a_token() -> None:
    """The host waits for the step before, not for the one that it has just begun."""
    asked = Ask(list(range(2, 400)), 20)

    def client() -> Client:
        yield asked

    with machine(M4_MAX) as mac:
        mac.serve([client()])
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked.times)]
    # With the last one the caches are taken out, which waits.
    assert gaps[:-1] == [pytest.approx(M4_MAX.decode_s)] * 18


def test_the_same_chat_takes_the_same_time_again_and_no_less_than_the_device_needs() -> None:
    once, again = scenarios.chat(M4_MAX), scenarios.chat(M4_MAX)
    assert once == again
    assert once["chat_cold"] >= M4_MAX.ideal_ttft_s(234)
    assert {row.key for row in scenarios.ROWS if row.key.startswith("chat")} == set(once)
