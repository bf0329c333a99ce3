"""`configi build --calibrate` within a budget: what would be in the way is said before losses are measured."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from quantize.__main__ import cli
from quantize.errors import OutputError, QuantizeError
from quantize.folder.quant_spec import QuantSpec
from tests.support.checkpoints import llama, write

WORDS = ("river", "city", "number", "line", "story", "sea", "hello", "index")


class Measuring:
    """In place of the measuring of losses: how often it was asked for."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, calibration: Any, budget: int, plan: Any, *_: Any) -> dict[str, QuantSpec]:
        self.times += 1
        return {output.name: QuantSpec(3) for output in plan.tensors if output.layer is not None and output.spec}


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    made = Measuring()
    monkeypatch.setattr("quantize.calibrate.calibration.allocated", made)
    return made


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    data = tmp_path / "own.txt"
    data.write_text(" ".join(random.Random(0).choices(WORDS, k=200)))
    source = write(tmp_path / "source", *llama())
    options = ["--policy", "uniform-4", "--calibrate", str(data), "--calibration-tokens", "64"]
    return ["build", str(source), str(tmp_path / "out"), *options]


def run(*command: str) -> None:
    cli(list(command), standalone_mode=False)


def test_a_memory_limit_that_is_too_small_is_refused_before_losses_are_measured(
    command: list[str], measuring: Measuring
) -> None:
    with pytest.raises(QuantizeError, match="needs a memory limit of at least"):
        run(*command, "--target-bpw", "4", "--memory-limit", "400MB")
    assert measuring.times == 0


def test_an_output_that_is_taken_is_refused_before_losses_are_measured(
    command: list[str], measuring: Measuring, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    with pytest.raises(OutputError, match="already exists and is not the result of this build"):
        run(*command, "--target-bpw", "4")
    assert measuring.times == 0


def test_the_same_wish_again_is_answered_at_once_and_another_budget_is_another_build(
    command: list[str], measuring: Measuring
) -> None:
    run(*command, "--target-bpw", "4")
    run(*command, "--target-bpw", "4")
    for other in (["--target-bpw", "3.9"], ["--target-bpw", "4", "--policy", "uniform-5"], []):
        with pytest.raises(OutputError, match="already exists and is not the result of this build"):
            run(*command, *other)
    assert measuring.times == 1
