"""A scenario against its peers: which of them are there, which are left out, what is recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import serving
from bench.peers import PEERS, environment
from bench.result import Measured, Row, Target
from bench.scenario import Scenario, Side, on_windows
from bench.sse import NoAnswer
from bench.tables import tables


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where peers are looked for: Rapid-MLX is installed, vllm-mlx is not."""
    monkeypatch.setenv("CONFIGI_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONFIGI_BENCH_PEERS", str(tmp_path / "peers"))
    programs = tmp_path / "peers" / "rapid-mlx" / "bin"
    programs.mkdir(parents=True)
    (programs / "rapid-mlx").touch()
    (programs / "python").write_text("#!/bin/sh\necho 0.16.10 0.31.2 0.31.3\n")
    (programs / "python").chmod(0o755)
    return programs


def measured_as(values: dict[str, float]) -> Scenario:
    def measure(side: Side) -> Measured:
        if side.kind not in values:
            raise NoAnswer("it said no")
        return Measured({"gap": values[side.kind], "share": 1.0}, ("a",))

    rows = (Row("gap", "longest gap", "s", Target(0.1)), Row("share", "share", ""))
    return Scenario("made_up", "Made up", rows, measure, model="sliding")


@pytest.mark.usefixtures("peers")
def test_a_peer_that_is_not_there_or_fails_is_left_out_and_named(tmp_path: Path) -> None:
    made = serving.measured(measured_as({"mlx_lm.server": 4.0, "Rapid-MLX": 2.0, "configi": 1.0}), 1)
    assert made.figures[0].peers == {"Rapid-MLX": 2.0}
    assert made.notes[0] == "Rapid-MLX 0.16.10 (mlx 0.31.2, mlx-lm 0.31.3)."
    assert made.notes[1].startswith("vllm-mlx is left out: not installed")
    assert "| longest gap | 4 s | 2 s | 1 s | 0.50x |" in tables({"running_stream": made})["bench-serving"]
    failing = serving.measured(measured_as({"mlx_lm.server": 4.0, "configi": 1.0}), 2)
    assert "Rapid-MLX is left out: it said no." in failing.notes
    assert failing.figures[0].ratio == 0.25


@pytest.mark.usefixtures("peers")
@pytest.mark.parametrize(("said", "recorded"), [("", True), ("40 % of the processors were taken by others", False)])
def test_nothing_is_recorded_on_a_machine_that_does_something_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: str,
    recorded: bool,
) -> None:
    monkeypatch.setattr(serving, "disturbance", lambda: said)
    scenario = measured_as({"mlx_lm.server": 4.0, "configi": 1.0})
    assert serving.run(scenario, 1, tmp_path / "results") is recorded
    assert (tmp_path / "results" / "made_up.json").exists() is recorded
    assert ("NOT RECORDED: 40 %" in capsys.readouterr().out) is not recorded


def test_a_scenario_on_windows_has_a_name_of_its_own() -> None:
    scenario = on_windows(measured_as({}))
    assert (scenario.name, scenario.title, scenario.model) == ("sliding_made_up", "Sliding window: made up", "windows")


def test_a_peer_keeps_its_caches_where_the_repetition_ends(tmp_path: Path) -> None:
    kept = environment(tmp_path / "home")
    assert (kept["HOME"], kept["DO_NOT_TRACK"]) == (str(tmp_path / "home"), "1")
    assert PEERS["vllm-mlx"].command(tmp_path, 7)[-1] == "--continuous-batching"
