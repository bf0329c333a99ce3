"""`configi doctor`: the machine it runs on as a process, and Macs that are made up."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from quantize.machine import model_memory
from server.cli.doctor import examine
from server.cli.power import low_power_mode
from server.settings.loading import load_settings
from tests.support.commands import configi
from tests.support.metal import FakeMetal
from tests.support.running import config
from tests.support.tiny_model import write_tiny_model

PMSET = """System-wide power settings:
Currently in use:
 standby              1
 Sleep On Power Button 1
 powernap             1
 {name}         {value}
 womp                 0
"""


def doctor(*flags: str) -> subprocess.CompletedProcess[str]:
    return configi("doctor", *flags, check=False)


def test_it_measures_this_machine_and_says_what_the_simulated_device_needs(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    path = config(tmp_path, model)
    done = doctor("--config", str(path), "--model", str(model), "--seconds", "10", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["sweep_s"] >= 0
    assert facts["token_s"] >= 0
    assert facts["cliff_tokens"] in (1, 64)
    assert facts["decode_s"] > 0
    assert facts["row_share"] >= 0
    assert facts["recommended_bytes"] == model_memory()
    assert facts["measured_model"] == "model"
    assert {row["model"]: row["fits"] for row in facts["fits"]}["tiny"] is True


def test_without_time_it_measures_nothing_and_says_the_rest(tmp_path: Path) -> None:
    path = config(tmp_path, write_tiny_model(tmp_path / "model"))
    done = doctor("--config", str(path), "--seconds", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "for a model" in done.stdout
    assert "it fits" in done.stdout
    assert "a pass" not in done.stdout


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    done = doctor("--model", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "no config.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("recommended", "fitting"), [(11_453_000_000, ["config-i-16gb"]), (115_448_725_504, "all")])
def test_on_a_mac_what_fits_follows_what_the_gpu_recommends(
    tmp_path: Path, recommended: int, fitting: list[str] | str
) -> None:
    settings = load_settings(config(tmp_path, tmp_path / "nothing"), {})
    facts = examine(settings, None, 0, ask=FakeMetal(recommended).device_info)
    assert facts["recommended_bytes"] == recommended
    assert facts["chip"] == "Apple M0"
    names = [row["model"] for row in facts["fits"] if row["fits"]]
    assert names == (fitting if isinstance(fitting, list) else [row["model"] for row in facts["fits"]])


@pytest.mark.parametrize(
    ("said", "low"),
    [
        (PMSET.format(name="lowpowermode", value=1), True),
        (PMSET.format(name="lowpowermode", value=0), False),
        (PMSET.format(name="powermode", value=2), False),
        ("", None),
    ],
)
def test_low_power_mode_is_what_pmset_says(said: str, low: bool | None) -> None:
    assert low_power_mode(said) is low
