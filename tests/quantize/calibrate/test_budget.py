"""`configi build --calibrate` within a budget: what is in the way is said at once, and memory keeps to the limit."""

from __future__ import annotations

import gc
import json
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from quantize.__main__ import cli
from quantize.calibrate.calibration import open_source
from quantize.calibrate.losses import moved, widths_within
from quantize.errors import OutputError, PolicyError, QuantizeError
from quantize.folder.quant_spec import QuantSpec
from quantize.plan.plan import make_plan
from quantize.progress import silent
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from tests.support.checkpoints import Gemma4Sizes, gemma4, llama, write

WORDS = ("river", "city", "number", "line", "story", "sea", "hello", "index")


class Measuring:
    """In place of the measuring of losses: how often it was asked for."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, calibration: Any, budget: int, plan: Any, **_: Any) -> dict[str, QuantSpec]:
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


@pytest.mark.parametrize("options", [[], ["--target-bpw", "8"]])
def test_a_policy_that_leaves_the_layers_as_they_are_has_nothing_to_calibrate(
    options: list[str], command: list[str], measuring: Measuring
) -> None:
    with pytest.raises(PolicyError, match="The policy source quantizes nothing within the layers"):
        run(*command, *options, "--policy", "source")
    with pytest.raises(PolicyError, match="The policy source quantizes nothing within the layers"):
        run("plan", command[1], *command[3:], "--policy", "source")
    assert measuring.times == 0


def test_no_text_is_not_the_text_that_ships(command: list[str], measuring: Measuring) -> None:
    with pytest.raises(QuantizeError, match="--calibrate was given an empty name"):
        run(*command[:6], "", *command[7:])


def test_widths_have_the_group_size_of_the_policy(tmp_path: Path) -> None:
    source = str(write(tmp_path / "source", *llama()))
    policy = tmp_path / "groups.toml"
    spec = "{ bits = 4, group_size = 32 }"
    roles = ("attention", "mlp_gate_up", "mlp_down", "embedding", "lm_head")
    policy.write_text("\n".join(['name = "groups"', "[roles]", *(f"{role} = {spec}" for role in roles)]))
    plan = make_plan(open_checkpoint(source, HubOptions()), str(policy))
    text = [mx.array([list(range(1, 33))])]
    found = widths_within(plan.tensor_bytes, plan, open_source(source, HubOptions()), text, silent)
    assert {spec.group_size for spec in found.values()} == {32}


def test_the_same_wish_again_is_answered_at_once_and_another_budget_is_another_build(
    command: list[str], measuring: Measuring
) -> None:
    run(*command, "--target-bpw", "4")
    run(*command, "--target-bpw", "4")
    for other in (["--target-bpw", "3.9"], ["--target-bpw", "4", "--policy", "uniform-5"], []):
        with pytest.raises(OutputError, match="already exists and is not the result of this build"):
            run(*command, *other)
    assert measuring.times == 1


def test_a_token_whose_stream_is_huge_counts_like_any_other() -> None:
    true = mx.array([[1000.0, 0], [1, 0], [0, 0]])
    stream = true + mx.array([[0.0, 10], [0.5, 0], [0, 0.1]])
    assert float(moved(stream[None], true[None])) == pytest.approx((1e-4 + 0.25 + 0.01) / 3)


def test_measuring_losses_takes_two_layers_of_memory_and_a_little(tmp_path: Path) -> None:
    """The layer and what is rounded of it: not what rounding takes on a CPU, nor the layer before."""
    sizes = Gemma4Sizes(hidden=128, layers=2, full_every=2, experts=32, expert_width=1024, mlp_width=256)
    source = str(write(tmp_path, *gemma4(sizes)))
    plan = make_plan(open_checkpoint(source, HubOptions()), "uniform-4")
    layer = 4 * sum(output.parameters for output in plan.tensors if output.layer == 0)
    kept: list[int] = []

    def note(*_: Any) -> None:
        kept.append(mx.get_active_memory())

    # Without the collector, which may not come by for as long as a layer lasts.
    gc.collect()
    gc.disable()
    mx.reset_peak_memory()
    try:
        widths_within(10**9, plan, open_source(source, HubOptions()), [mx.array([list(range(1, 33))])], note)
    finally:
        gc.enable()
    assert mx.get_peak_memory() - kept[0] < 2.5 * layer
    assert kept[1] - kept[0] < 0.1 * layer


def test_a_plan_tells_the_tokens_that_there_are_and_not_those_that_were_asked_for(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def needs(tokens: int) -> dict[str, Any]:
        run("plan", command[1], "--calibrate", command[6], "--calibration-tokens", str(tokens), "--json")
        return dict(json.loads(capsys.readouterr().out)["calibration"])

    few, many = needs(64), needs(10**12)
    assert 64 <= few["tokens"] < many["tokens"] < 100_000
    assert few["peak_disk_bytes"] < many["peak_disk_bytes"] < 10**9


def test_a_build_asks_for_the_disk_of_the_tokens_that_there_are(command: list[str], tmp_path: Path) -> None:
    run(*command[:-1], str(10**12))
    assert (tmp_path / "out" / "config.json").is_file()
