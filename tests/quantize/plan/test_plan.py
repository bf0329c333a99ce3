"""A plan from headers alone: the published figures, roles, specs, and what is refused before a weight is read."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize.errors import PolicyError, SourceError
from quantize.folder.quant_spec import QuantSpec
from quantize.plan.plan import Plan, make_plan
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from quantize.source.views import View
from tests.support.checkpoints import GEMMA4_26B_A4B, gemma4, llama, qwen3_moe, write
from tests.support.commands import configi
from tests.support.running import ROOT
from tests.support.trained import write_trained_model


def plan_of(source: Path, policy: str = "config-i") -> Plan:
    return make_plan(open_checkpoint(str(source), HubOptions()), policy)


@pytest.fixture(scope="module")
def real_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """google/gemma-4-26b-a4b-it: 51.6 GB of holes behind true headers."""
    return write(tmp_path_factory.mktemp("real"), *gemma4(GEMMA4_26B_A4B), shards=2, holes=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tiny"), *gemma4(), holes=True)


@pytest.mark.parametrize(
    ("policy", "bits_per_weight", "gigabytes", "gibibytes"),
    [
        # The published size of the model.
        ("config-i", 3.8025, 11.99, 11.17),
        ("config-i-no2bit", 3.7714, 11.90, 11.08),
        ("config-i-16gb", 3.2727, 10.32, 9.61),
    ],
)
def test_gemma_4_26b_a4b_has_its_size(
    real_shapes: Path, policy: str, bits_per_weight: float, gigabytes: float, gibibytes: float
) -> None:
    plan = plan_of(real_shapes, policy)
    assert plan.parameters == 25_233_141_790
    assert round(plan.bits_per_weight, 4) == bits_per_weight
    assert round(plan.output_bytes / 1e9, 2) == gigabytes
    assert round(plan.output_bytes / 2**30, 2) == gibibytes


def test_the_report_tells_size_build_and_what_a_small_mac_can_hold(real_shapes: Path) -> None:
    said = configi("plan", str(real_shapes)).stdout
    assert "3.8025" in said
    assert "11.99 GB (11.17 GiB)" in said
    assert "25,233,141,790" in said
    assert "Metal gives 11.45 GB (10.67 GiB) by default: it does not fit" in said
    assert "expert_gate_up  2-27        2-bit gs64    13,195,280,384  4,123,525,120" in said


def test_a_mac_of_ones_own_is_told_what_it_can_hold(real_shapes: Path) -> None:
    said = configi("plan", str(real_shapes), "--fit-mac", "16GB").stdout
    assert "of 11.45 GB (10.67 GiB) that Metal gives there, 10.45 GB (9.74 GiB) for weights, 3.314 bits each" in said
    facts = json.loads(configi("plan", str(real_shapes), "--fit-mac", "24GiB", "--json").stdout)["fit_mac"]
    assert facts["tensor_bytes"] == 2**34 - 1_000_000_000
    assert facts["fits"]
    refused = configi("plan", str(real_shapes), "--fit-mac", "1GB", check=False)
    assert refused.returncode == 1
    assert "A Mac of 1GB has no room for a model." in refused.stderr


def test_one_file_and_less_than_a_minute_are_told_as_one(tmp_path: Path) -> None:
    write_trained_model(tmp_path)
    said = configi("plan", str(tmp_path), "--calibrate", "--calibration-tokens", "512").stdout
    assert re.search(r"in 1 file$", said, re.MULTILINE)
    assert said.rstrip().endswith("; about 1 minute on this machine")


def test_the_example_in_the_docs_is_what_is_printed(real_shapes: Path) -> None:
    [example] = [block for block in docs_blocks("text") if block.startswith("role ")]
    said = configi("plan", str(real_shapes)).stdout.splitlines()
    for line in filter(None, example.splitlines()):
        assert any(spoken.startswith(line) for spoken in said), line


def docs_blocks(language: str) -> list[str]:
    page = (ROOT / "docs" / "building.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def test_the_policy_in_the_docs_is_one(real_shapes: Path, tmp_path: Path) -> None:
    [example] = docs_blocks("toml")
    (tmp_path / "mine.toml").write_text(example)
    assert plan_of(real_shapes, str(tmp_path / "mine.toml")).policy.name == "mine"


def test_the_options_in_the_docs_are_those_that_there_are() -> None:
    page = (ROOT / "docs" / "building.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(--[a-z-]+)", page, re.MULTILINE))
    there = set(re.findall(r"--[a-z-]+", configi("build", "--help").stdout))
    assert documented == there - {"--help"}


def test_the_json_says_the_same(real_shapes: Path) -> None:
    facts = json.loads(configi("plan", str(real_shapes), "--policy", "config-i-16gb", "--json").stdout)
    assert facts["parameters"] == 25_233_141_790
    assert sum(row["nbytes"] for row in facts["table"]) * 8 / facts["parameters"] == facts["bits_per_weight"]
    assert facts["mac_16gb"] == {"memory_bytes": 2**34 * 2 // 3, "fits": True}
    assert facts["build"]["peak_memory_bytes"] < 3_000_000_000
    assert facts["build"]["peak_disk_bytes"] == facts["output_bytes"]


def test_the_table_of_config_i(tiny: Path) -> None:
    specs = {output.path: output.spec for output in plan_of(tiny).tensors}
    layer = "language_model.model.layers.{}.{}"
    for boundary in (0, 1, 4, 5):
        for name in ("experts.switch_glu.gate_proj", "experts.switch_glu.down_proj", "self_attn.q_proj", "mlp.up_proj"):
            assert specs[layer.format(boundary, name)] == QuantSpec(8)
    assert specs[layer.format(2, "experts.switch_glu.gate_proj")] == QuantSpec(2)
    assert specs[layer.format(2, "experts.switch_glu.up_proj")] == QuantSpec(2)
    assert specs[layer.format(2, "experts.switch_glu.down_proj")] == QuantSpec(3)
    assert specs[layer.format(2, "mlp.gate_proj")] == QuantSpec(2)
    assert specs[layer.format(2, "mlp.down_proj")] == QuantSpec(3)
    assert {specs[layer.format(2, f"self_attn.{name}_proj")] for name in "qkvo" if name != "v"} == {QuantSpec(4)}
    assert {specs[layer.format(number, "router.proj")] for number in range(6)} == {None}
    assert specs["language_model.model.embed_tokens"] == QuantSpec(8)
    assert layer.format(2, "self_attn.v_proj") not in specs


def test_a_dense_model_has_the_table_for_dense_models(tmp_path: Path) -> None:
    plan = plan_of(write(tmp_path, *llama(layers=5), holes=True))
    specs = {output.path: output.spec for output in plan.tensors}
    assert specs["model.layers.2.mlp.gate_proj"] == specs["model.layers.2.self_attn.q_proj"] == QuantSpec(4)
    assert specs["model.layers.0.mlp.gate_proj"] == specs["model.layers.4.self_attn.q_proj"] == QuantSpec(8)
    assert specs["model.embed_tokens"] is None


@pytest.mark.parametrize(
    ("policy", "attention", "gate", "down", "boundary"),
    [("config-i-paper", 5.0, 5.0, 4.5, 2), ("hybrid", 5.0, 4.5, 4.5, 2), ("premium", 5.0, 5.5, 6.5, 4)],
)
def test_the_papers_policies_have_its_bits_per_weight(
    tmp_path: Path, policy: str, attention: float, gate: float, down: float, boundary: int
) -> None:
    plan = plan_of(write(tmp_path, *llama(layers=9), holes=True), policy)
    bits = {output.path: output.nbytes * 8 / output.parameters for output in plan.tensors}
    assert bits["model.layers.4.self_attn.o_proj"] == attention
    assert bits["model.layers.4.mlp.up_proj"] == gate
    assert bits["model.layers.4.mlp.down_proj"] == down
    assert bits["model.embed_tokens"] == 8.5
    eights = {path.split(".")[2] for path, b in bits.items() if path.endswith("up_proj") and b == 8.5}
    assert eights == {str(layer) for layer in (*range(boundary), *range(9 - boundary, 9))}


def test_a_group_size_that_does_not_divide_gives_way_and_the_plan_says_so(tmp_path: Path) -> None:
    config, shapes = llama(layers=5, width=96)
    plan = plan_of(write(tmp_path, config, shapes, holes=True), "uniform-4")
    forced = {output.path: (output.policy_spec, output.spec) for output in plan.tensors if output.policy_spec}
    assert forced == {f"model.layers.{n}.mlp.down_proj": (QuantSpec(4, 64), QuantSpec(4, 32)) for n in range(5)}
    said = " ".join(configi("plan", str(tmp_path), "--policy", "uniform-4").stdout.split())
    assert (
        "model.layers.*.mlp.down_proj.weight (layers 0-4): 4-bit gs32; no group of 4-bit gs64 divides its columns"
        in said
    )


def test_every_row_of_the_source_goes_to_one_place_or_is_named_as_dropped(tiny: Path) -> None:
    plan = plan_of(tiny)
    for tensor, pieces in plan.work:
        taken = [element for piece in pieces for element in elements(piece.view)]
        assert sorted(taken) == list(range(math.prod(tensor.shape))), tensor.name
    used = {tensor.name for tensor, _ in plan.work}
    assert used.isdisjoint(plan.dropped)
    assert all("vision" in name for name in plan.dropped)
    assert len(used) + len(plan.dropped) == len(open_checkpoint(str(tiny), HubOptions()).tensors)


def elements(view: View) -> list[int]:
    """The offsets that a view names, in its order."""
    at = np.zeros(1, int)
    for count, stride in (*view.rows, view.columns):
        at = np.add.outer(at, np.arange(count) * stride)
    return [int(offset) for offset in (at + view.offset).ravel()]


POLICY = """\
name = "mine"
[roles]
embedding = {bits = 6}
lm_head = {bits = 6}
attention = {bits = 5, group_size = 32}
expert_gate_up = {bits = 3}
expert_down = {bits = 4}
router = "keep"
[boundary]
first = 1
last = 0
roles = {attention = {bits = 8}}
"""


def test_a_policy_of_ones_own(tmp_path: Path) -> None:
    source = write(tmp_path / "source", *qwen3_moe(layers=3), holes=True)
    (tmp_path / "mine.toml").write_text(POLICY)
    specs = {t.path: t.spec for t in plan_of(source, str(tmp_path / "mine.toml")).tensors}
    assert specs["model.layers.0.self_attn.q_proj"] == QuantSpec(8)
    assert specs["model.layers.2.self_attn.q_proj"] == QuantSpec(5, 32)
    assert specs["model.layers.0.mlp.switch_mlp.gate_proj"] == QuantSpec(3)
    assert specs["model.layers.1.mlp.gate"] is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("router", "routers"), r"roles\.routers"),
        (("bits = 5", "bits = 7"), r"roles\.attention"),
        (("group_size = 32", 'group_size = "32"'), r"roles\.attention"),
        (('name = "mine"', "name = mine"), "not valid TOML"),
        (("attention = {bits = 5, group_size = 32}\n", ""), "does not name the role attention"),
    ],
)
def test_a_bad_policy_is_one_sentence(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    source = write(tmp_path / "source", *qwen3_moe(layers=3), holes=True)
    (tmp_path / "mine.toml").write_text(POLICY.replace(*change))
    with pytest.raises(PolicyError, match=sentence):
        plan_of(source, str(tmp_path / "mine.toml"))


def test_an_unknown_policy_names_those_that_there_are(tiny: Path) -> None:
    with pytest.raises(PolicyError, match=r"no policy config-j; use config-i, .*uniform-8"):
        plan_of(tiny, "config-j")


Change = dict[str, Any]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"add": {"model.language_model.layers.0.new_gate.weight": (64, 128)}}, "new_gate.weight has no known role"),
        ({"drop": "model.language_model.layers.3.experts.down_proj"}, "lacks .*layers.3.experts.switch_glu.down_proj"),
        ({"add": {"model.language_model.layers.3.mlp.up_proj.weight": (190, 128)}}, "has the shape"),
        ({"config": {"model_type": "transformer"}}, "type 'transformer' are unknown to mlx-lm"),
        ({"config": {"model_type": "olmo"}}, "type 'olmo' without a package that is not installed"),
        ({"config": {"quantization_config": {"quant_method": "bitnet"}}}, "with bitnet, which cannot be undone"),
        (
            {"config": {"text_config": {"model_type": "gemma4_text"}}},
            "has no known role in models of the type 'gemma4'",
        ),
    ],
)
def test_a_source_that_is_not_what_it_should_be_is_one_sentence(tmp_path: Path, change: Change, sentence: str) -> None:
    config, shapes = gemma4()
    shapes = {name: shape for name, shape in (shapes | change.get("add", {})).items() if name != change.get("drop")}
    source = write(tmp_path, config | change.get("config", {}), shapes, holes=True)
    with pytest.raises(SourceError, match=sentence):
        plan_of(source)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    config, shapes = qwen3_moe()
    del shapes["model.layers.1.mlp.experts.2.up_proj.weight"]
    with pytest.raises(SourceError, match=r"lacks model\.layers\.1\.mlp\.experts\.2\.up_proj\.weight, which"):
        plan_of(write(tmp_path, config, shapes, holes=True))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def scribble(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:8] + b"}" + file.read_bytes()[9:])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (cut, "cut short or damaged"),
        (scribble, "header of model-00002-of-00003.safetensors is damaged"),
        (empty, "is not a safetensors file"),
        (Path.unlink, "lacks the shard model-00002-of-00003.safetensors"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, damage: Any, sentence: str) -> None:
    source = write(tmp_path, *gemma4(), holes=True)
    damage(source / "model-00002-of-00003.safetensors")
    with pytest.raises(SourceError, match=sentence):
        plan_of(source)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["plan", "/nowhere"], "neither a folder"),
        (["plan", "a/b/c"], "neither a folder"),
        (["plan", "{tiny}", "--memory-limit", "lots"], "lots is not an amount of memory"),
        (["plan", "{tiny}", "--fit-mac", "a big one"], "a big one is not an amount of memory"),
        (["plan", "{tiny}", "--fit-mac=-16gb"], "-16gb is not an amount of memory"),
        (["plan", "{tiny}", "--memory-limit", "1MB"], "needs a memory limit of"),
        (["plan", "{tiny}", "--policy", "nope.toml"], "nope.toml cannot be read"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_exit_code_1(tiny: Path, arguments: list[str], sentence: str) -> None:
    done = configi(*(argument.format(tiny=tiny) for argument in arguments), check=False)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
