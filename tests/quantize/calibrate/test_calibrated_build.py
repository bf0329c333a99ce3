"""`configi build --calibrate`: a folder like any other, better than rounding, the same bytes however it was made."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import generate, load

from quantize.__main__ import cli
from quantize.build.build import build
from quantize.calibrate.calibration import Calibration, open_source, read_calibration
from quantize.calibrate.estimate import estimate
from quantize.errors import OutputError, SourceError
from quantize.evaluate.texts import OWN
from quantize.folder.manifest import Manifest, read_manifest
from quantize.folder.verify import verify
from quantize.plan.plan import make_plan
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from tests.support.checkpoints import Gemma4Sizes, gemma4, llama, qwen3_moe, write
from tests.support.running import ROOT

TOKENS = 512
SENTENCES = (
    "The river that runs through the city is the Seine.", "Return the number of the first line that matches.",
    "Tell them a short story about the sea, and say hello.", "for index in range(10): print(index)",
)  # fmt: skip


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def text(file: Path, seed: int = 0) -> Path:
    draw = random.Random(seed)
    lines = [{"kind": kind, "text": " ".join(draw.choices(SENTENCES, k=12))} for kind in ("prose", "code")]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def calibrated(
    source: Path, output: Path, data: Path, progress: Callable[..., None] = lambda *_: None, policy: str = "uniform-3"
) -> Path:
    made = read_calibration(data, TOKENS)
    checkpoint = open_checkpoint(str(source), HubOptions())
    plan = make_plan(checkpoint, policy, calibration=made.identity)
    run = partial(made.run, open_source(str(source), HubOptions()))
    return build(checkpoint, plan, output, memory_limit=260_000_000, progress=progress, calibrate=run)


def manifest(folder: Path) -> Manifest:
    found = read_manifest(folder)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(
        tmp_path_factory.mktemp("source"),
        *gemma4(Gemma4Sizes(hidden=64, layers=2, full_every=2, experts=4, mlp_width=64)),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text(tmp_path_factory.mktemp("text") / "own.jsonl")


@pytest.fixture(scope="module")
def whole(source: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A build that nothing happened to, and how often it reported while it calibrated."""
    calls = itertools.count()

    def count(phase: str, *_: Any) -> None:
        if phase == "calibrating":
            next(calls)

    return calibrated(source, tmp_path_factory.mktemp("whole") / "out", data, count), next(calls)


@pytest.fixture(scope="module", params=["gemma4", "qwen3_moe", "llama"])
def of_a_family(
    request: pytest.FixtureRequest, whole: tuple[Path, int], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A calibrated model."""
    if request.param == "gemma4":
        return whole[0]
    layout = qwen3_moe(layers=2) if request.param == "qwen3_moe" else llama(layers=2)
    folder = tmp_path_factory.mktemp(request.param)
    return calibrated(write(folder / "source", *layout), folder / "out", data)


def test_it_is_whole_and_stock_mlx_lm_generates_with_it(of_a_family: Path) -> None:
    assert verify(of_a_family) == []
    model, tokenizer = load(str(of_a_family))
    model.set_dtype(mx.float32)
    assert generate(model, tokenizer, prompt="Hello", max_tokens=4)


def test_the_manifest_tells_the_text_and_what_every_matrix_gained(whole: tuple[Path, int]) -> None:
    told = manifest(whole[0])
    assert told.calibration is not None
    assert set(told.calibration.kinds) == {"prose", "code"}
    assert set(told.calibration.held_back) == {"law"}
    assert told.calibration.identity["tokens"] == TOKENS
    for name, tensor in told.tensors.items():
        layered = tensor.bits is not None and ".layers." in name
        assert (tensor.calibrated is not None) == layered, name
        if tensor.calibrated is not None:
            assert tensor.calibrated.worst <= 1
            assert sum(tensor.calibrated.chosen.values()) == (4 if "experts" in name else 1)
    card = (whole[0] / "README.md").read_text()
    assert "calibrated on" in card
    assert "without calibration" not in card
    figures = [tensor.calibrated for tensor in told.tensors.values() if tensor.calibrated is not None]
    starved, solved = sum(one.starved for one in figures), sum(sum(one.chosen.values()) for one in figures)
    assert starved > 0
    assert (
        f"Of {solved} solutions, each of a matrix, of one expert's or of a part of a large one,\n{starved} had" in card
    )


def test_only_what_was_calibrated_differs_from_a_build_that_was_not(
    whole: tuple[Path, int], source: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(str(source), HubOptions())
    plain = build(checkpoint, make_plan(checkpoint, "uniform-3"), tmp_path / "out")
    tensors: list[Any] = [mx.load(str(folder / "model.safetensors")) for folder in (plain, whole[0])]
    figures = manifest(whole[0]).tensors
    assert tensors[0].keys() == tensors[1].keys()
    for name, first in tensors[0].items():
        second = tensors[1][name]
        assert (first.shape, first.dtype) == (second.shape, second.dtype)
        described = figures.get(name) or figures[f"{name.rpartition('.')[0]}.weight"]
        if described.calibrated is None:
            assert mx.array_equal(first, second).item(), name
        elif name.endswith(".weight"):
            assert not mx.array_equal(first, second).item(), name


@pytest.mark.slow
def test_the_same_again_is_the_same_bytes(whole: tuple[Path, int], source: Path, data: Path, tmp_path: Path) -> None:
    assert hashes(calibrated(source, tmp_path / "out", data)) == hashes(whole[0])


@pytest.mark.parametrize(
    "moment", [0.6, *(pytest.param(moment, marks=pytest.mark.slow) for moment in (0.1, 0.35, 0.85))]
)
def test_killed_while_it_calibrates_it_goes_on_to_the_same_bytes(
    moment: float, whole: tuple[Path, int], source: Path, data: Path, tmp_path: Path
) -> None:
    output, total = tmp_path / "out", whole[1]
    arguments = [str(source), str(output), "uniform-3", str(max(1, int(total * moment))), "kill", str(data)]
    killed = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_build", *arguments], cwd=ROOT, capture_output=True, check=False
    )
    assert killed.returncode == -9, killed.stderr
    assert not output.exists()
    layers: list[str] = []

    def note(phase: str, done: int, total: int | None, text: str) -> None:
        if phase == "calibrating":
            layers.append(text)

    calibrated(source, output, data, note)
    assert hashes(output) == hashes(whole[0])
    if moment > 0.5:
        assert layers[0] != "layer 1 of 2"


@pytest.mark.slow
def test_another_text_starts_anew_and_never_takes_the_place_of_this_one(
    whole: tuple[Path, int], source: Path, data: Path, tmp_path: Path
) -> None:
    other = text(tmp_path / "other.jsonl", seed=1)
    with pytest.raises(OutputError, match="not the result of this build"):
        calibrated(source, whole[0], other)
    output = tmp_path / "out"
    arguments = [str(source), str(output), "uniform-3", str(int(whole[1] * 0.6)), "kill", str(other)]
    subprocess.run(
        [sys.executable, "-m", "tests.support.killed_build", *arguments], cwd=ROOT, capture_output=True, check=False
    )
    layers: list[str] = []
    calibrated(source, output, data, lambda phase, done, total, text: layers.append(text))
    assert layers[0] == "layer 1 of 2"
    assert hashes(output) == hashes(whole[0])


def test_a_source_with_weights_that_are_not_finite_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "source", *llama(), shards=1)
    [shard] = source.glob("*.safetensors")
    weights: Any = mx.load(str(shard))
    name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    weights[name][3, 5] = float("nan")
    mx.save_safetensors(str(shard), weights, metadata={"format": "pt"})
    with pytest.raises(SourceError, match="not finite, in mlp"):
        calibrated(source, tmp_path / "out", data)


def test_the_identity_tells_every_calibration_from_every_other(data: Path, tmp_path: Path) -> None:
    one = read_calibration(data, TOKENS)
    others = [read_calibration(data, TOKENS + 1), read_calibration(text(tmp_path / "o.jsonl", 2), TOKENS)]
    assert one.identity == read_calibration(data, TOKENS).identity
    assert all(one.identity != other.identity for other in others)
    assert isinstance(one, Calibration)


def test_text_that_eval_judges_on_is_refused(source: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text(OWN.read_text())
    command = [sys.executable, "-m", "quantize", "build", str(source), str(tmp_path / "out"), "--calibrate", str(own)]
    assert "holds text that `eval` judges on" in run(command, code=1).stderr
    assert not (tmp_path / "out").exists()


def test_eval_takes_the_covered_kinds_from_the_manifest(whole: tuple[Path, int], source: Path, tmp_path: Path) -> None:
    judged = tmp_path / "judged.jsonl"
    lines = [{"kind": kind, "text": " ".join(SENTENCES)} for kind in ("prose", "chat")]
    judged.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "quantize", "eval", str(whole[0]), "--reference", str(source)]
    told = json.loads(run([*command, "--text", str(judged), "--generate", "0", "--json"]).stdout)
    assert told["protocol"]["covered"] == ["prose"]
    assert set(told["groups"]) == {"covered", "uncovered", "all"}


def test_eval_says_whether_it_judges_on_what_was_calibrated_on(
    whole: tuple[Path, int], source: Path, data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("None of this was ever read by it, and it goes on for a little while after that, at its ease.")

    def report(*options: str) -> str:
        command = [sys.executable, "-m", "quantize", "eval", str(whole[0]), "--reference", str(source)]
        return run([*command, "--generate", "0", *options]).stdout

    assert "It is not known here" in report("--text", str(other))
    assert "No 16 words in a row" in report("--text", str(other), "--calibrated-on", str(data))
    assert "these figures flatter it" in report("--text", str(data), "--calibrated-on", str(data))
    wrong = [sys.executable, "-m", "quantize", "eval", str(whole[0]), "--reference", str(source)]
    refused = run([*wrong, "--calibrated-on", str(text(tmp_path / "wrong.jsonl", 3))], code=1)
    assert "is not the text that the model was calibrated on" in refused.stderr


def test_what_a_calibration_needs_of_the_disk_is_asked_for_first(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = replace(estimate(make_plan(open_checkpoint(str(source), HubOptions()), "uniform-4"), 64), disk_bytes=10**18)
    monkeypatch.setattr("quantize.calibrate.estimate.estimate", lambda plan, tokens: huge)
    with pytest.raises(OutputError, match=r"needs 1000000000\.\d GB of disk"):
        cli(["build", str(source), str(tmp_path / "out"), "--calibrate", str(data)], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("plan SOURCE --calibration-tokens 512", "give --calibrate too"),
        ("plan --calibrate SOURCE", "was taken for the text of --calibrate"),
        ("build SOURCE OUTPUT --calibration-tokens 512", "give --calibrate too"),
        ("build --calibrate SOURCE OUTPUT", "was taken for the text of --calibrate"),
    ],
)
def test_options_that_would_be_for_nothing_are_a_wrong_command(
    options: str, sentence: str, source: Path, tmp_path: Path
) -> None:
    paths = {"SOURCE": str(source), "OUTPUT": str(tmp_path / "out")}
    words = [paths.get(word, word) for word in options.split()]
    said = run([sys.executable, "-m", "quantize", *words], code=2).stderr
    assert sentence in " ".join(re.sub(r"[^\w\s.,-]", " ", said).split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bits", ["inf", "nan", "1", "33"])
def test_a_budget_that_is_no_number_of_bits_is_a_wrong_command(
    bits: str, source: Path, data: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "quantize", "build", str(source), str(tmp_path / "out"), "--calibrate", str(data)]
    assert "--target-bpw" in run([*command, "--target-bpw", bits], code=2).stderr


@pytest.mark.slow
def test_a_budget_is_kept_and_gate_and_up_keep_one_width(source: Path, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quantize", "build", str(source), str(tmp_path / "out"), "--policy", "uniform-4"]
    assert "give --calibrate" in run([*command, "--target-bpw", "4"], code=2).stderr
    assert "give --calibrate" in run([*command, "--fit-mac", "16GB"], code=2).stderr
    command += ["--calibrate", str(data), "--calibration-tokens", "64"]
    smallest = run([*command, "--max-bytes", "1kB"], code=1).stderr
    assert re.search(r"The smallest model .* takes \d\d,\d{3} bytes, \d\.\d{3} bits for each weight", smallest)
    run([*command, "--target-bpw", "4.2"])
    assert verify(tmp_path / "out") == []
    told = manifest(tmp_path / "out")
    assert 3.9 < told.bits_per_weight <= 4.2
    assert told.policy.name == "uniform-4-allocated"
    widths = {name: tensor.bits for name, tensor in told.tensors.items() if tensor.bits and ".layers." in name}
    assert len(set(widths.values())) > 1
    gates = [name for name in widths if "gate_proj" in name]
    assert gates
    assert all(widths[name] == widths[name.replace("gate_proj", "up_proj")] for name in gates)


def test_nothing_of_a_layer_stays_in_memory_while_the_next_is_calibrated(data: Path, tmp_path: Path) -> None:
    """Without the collector, which may not come by for as long as a layer lasts."""
    folder = write(tmp_path, *gemma4(Gemma4Sizes(hidden=64, layers=6, full_every=6, experts=16, mlp_width=256)))
    active: list[int] = []

    def note(phase: str, *_: Any) -> None:
        if phase == "calibrating":
            active.append(mx.get_active_memory())

    gc.collect()
    gc.disable()
    try:
        calibrated(folder, tmp_path / "out", data, note)
    finally:
        gc.enable()
    starts = active[:: len(active) // 6]
    # Of which a layer has 12 MB.
    assert max(starts[1:]) - min(starts[1:]) < 1_000_000


@pytest.mark.slow
def test_memory_keeps_to_what_the_plan_says_and_a_limit_below_is_refused(tmp_path: Path) -> None:
    config, shapes = llama(layers=3, hidden=128, width=256)
    source = write(tmp_path / "source", config, shapes)
    command = [sys.executable, "-m", "quantize", "plan", str(source), "--calibrate", "--calibration-tokens", "1024"]
    planned = json.loads(run([*command, "--json"]).stdout)["calibration"]
    assert planned["peak_disk_bytes"] > 0
    assert planned["seconds"] > 0
    least = planned["peak_memory_bytes"]
    # Of all weights in float32, and of the activations of all layers, nothing like it would be left.
    assert least < 1_000_000_000
    output = tmp_path / "out"
    build = [sys.executable, "-m", "quantize", "build", str(source), str(output), "--policy", "uniform-4"]
    build += ["--calibration-tokens", "1024", "--calibrate", str(text(tmp_path / "own.jsonl"))]
    refused = run([*build, "--memory-limit", str(least - 1)], code=1)
    assert "needs a memory limit of at least" in refused.stderr
    assert not output.exists()
    script = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)"
    script += "; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    done = run([sys.executable, "-c", script, *build, "--memory-limit", str(least)])
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit <= least


def run(command: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done
