"""Building from synthetic checkpoints in the Hub's layout: every number where and what it should be, and it serves."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import generate, load

from quantize.build.build import build
from quantize.errors import OutputError, QuantizeError, SourceError
from quantize.folder.quant_spec import QuantSpec
from quantize.folder.safetensors_format import read_header
from quantize.folder.verify import verify
from quantize.plan.plan import Plan, make_plan
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from tests.support.checkpoints import Shapes, gemma4, llama, qwen3_moe, write
from tests.support.commands import embedding_worker
from tests.support.running import serving


def built(source: Path, output: Path, policy: str = "config-i") -> Plan:
    checkpoint = open_checkpoint(str(source), HubOptions())
    plan = make_plan(checkpoint, policy)
    assert build(checkpoint, plan, output) == output
    return plan


def weights(folder: Path) -> dict[str, mx.array]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in mx.load(str(file)).items()}  # type: ignore[union-attr]


class Model:
    """A source and what was built from it, config-i."""

    def __init__(self, folder: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
        self.source, self.output = write(folder / "source", config, shapes), folder / "output"
        self.plan = built(self.source, self.output)
        self.before, self.after = weights(self.source), weights(self.output)
        self.config = json.loads((self.output / "config.json").read_text())

    def stored(self, path: str, width: QuantSpec | None, matrix: mx.array) -> None:
        """Asserts that module `path` holds `matrix` at `width`, as mx.quantize has it, and that the config says so."""
        entry = self.config["quantization"].get(path)
        if width is None:
            assert entry in (None, False), path
            assert mx.array_equal(self.after.pop(f"{path}.weight"), matrix), path
            return
        assert entry == {"bits": width.bits, "group_size": width.group_size, "mode": "affine"}, path
        expected = mx.quantize(matrix, group_size=width.group_size, bits=width.bits)
        for suffix, array in zip(("weight", "scales", "biases"), expected, strict=True):
            assert mx.array_equal(self.after.pop(f"{path}.{suffix}"), array), f"{path}.{suffix}"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("gemma"), *gemma4())


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("qwen"), *qwen3_moe())


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("llama"), *llama())


def test_every_tensor_of_gemma_4_is_what_the_policy_says(gemma: Model) -> None:
    after = dict(gemma.after)
    root, target = "model.language_model.", "language_model.model."
    gemma.stored(f"{target}embed_tokens", QuantSpec(8), gemma.before[f"{root}embed_tokens.weight"])
    for layer in range(6):
        boundary = QuantSpec(8) if layer in (0, 1, 4, 5) else None
        before, path = f"{root}layers.{layer}.", f"{target}layers.{layer}."
        gate, up = mx.split(gemma.before[f"{before}experts.gate_up_proj"], 2, axis=-2)
        gemma.stored(f"{path}experts.switch_glu.gate_proj", boundary or QuantSpec(2), gate)
        gemma.stored(f"{path}experts.switch_glu.up_proj", boundary or QuantSpec(2), up)
        down = gemma.before[f"{before}experts.down_proj"]
        gemma.stored(f"{path}experts.switch_glu.down_proj", boundary or QuantSpec(3), down)
        gemma.stored(f"{path}router.proj", None, gemma.before[f"{before}router.proj.weight"])
        specs = {"gate_proj": QuantSpec(2), "up_proj": QuantSpec(2), "down_proj": QuantSpec(3)}
        for name, width in specs.items():
            gemma.stored(f"{path}mlp.{name}", boundary or width, gemma.before[f"{before}mlp.{name}.weight"])
        for name in ("q_proj", "k_proj", "o_proj", *(() if layer in (2, 5) else ("v_proj",))):
            matrix = gemma.before[f"{before}self_attn.{name}.weight"]
            gemma.stored(f"{path}self_attn.{name}", boundary or QuantSpec(4), matrix)
    # All that is left is kept as it was.
    for name, array in gemma.after.items():
        original = name.replace(target, root)
        assert mx.array_equal(array, gemma.before[original]), name
        assert array.dtype == mx.bfloat16
    gemma.after = after


def test_experts_in_tensors_of_their_own_are_stacked(qwen: Model) -> None:
    for layer in range(5):
        for name, width in {"gate": QuantSpec(2), "up": QuantSpec(2), "down": QuantSpec(3)}.items():
            before = [qwen.before[f"model.layers.{layer}.mlp.experts.{e}.{name}_proj.weight"] for e in range(4)]
            path = f"model.layers.{layer}.mlp.switch_mlp.{name}_proj"
            qwen.stored(path, width if layer == 2 else QuantSpec(8), mx.stack(before))
        router = f"model.layers.{layer}.mlp.gate"
        qwen.stored(router, None, qwen.before[f"{router}.weight"])


def test_a_dense_model_is_what_the_policy_says(dense: Model) -> None:
    for layer in range(5):
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
            path = f"model.layers.{layer}.{name}"
            dense.stored(path, QuantSpec(4) if layer == 2 else QuantSpec(8), dense.before[f"{path}.weight"])
    dense.stored("model.embed_tokens", None, dense.before["model.embed_tokens.weight"])


@pytest.mark.parametrize("kind", ["gemma", "qwen", "dense"])
def test_it_verifies_loads_in_stock_mlx_lm_and_generates(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    assert verify(model.output) == []
    network, tokenizer = load(str(model.output))
    quantized = {path for path, module in network.named_modules() if hasattr(module, "bits")}
    assert quantized == {t.path for t in model.plan.tensors if t.spec}
    assert network.language_model.model.embed_tokens.bits == 8 if kind == "gemma" else True
    assert isinstance(generate(network, tokenizer, "Hello", max_tokens=8), str)
    logits = network(mx.array([[5, 9, 40]]))
    # A router in float16 or float32 would promote all that follows.
    assert logits.dtype == mx.bfloat16
    assert mx.isfinite(logits).all()


@pytest.mark.parametrize("kind", ["gemma", "qwen"])
def test_it_is_served_and_answers(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = request.getfixturevalue(kind)
    with serving(tmp_path, model.output) as server:
        server.assert_still_serves()


@pytest.mark.slow
def test_the_embedded_model_in_config_i_still_knows_the_capital_of_france(tmp_path: Path) -> None:
    out, _ = embedding_worker(tmp_path / "cache").communicate()
    plan = built(Path(json.loads(out.splitlines()[-1])["folder"]), tmp_path / "out")
    assert 4.5 < plan.bits_per_weight < 9
    assert verify(tmp_path / "out") == []
    with serving(tmp_path, tmp_path / "out") as server:
        body = {"prompt": "The capital of France is", "max_tokens": 3, "temperature": 0}
        status, answer = server.post("/v1/completions", body)
    assert status == 200, answer
    assert "Paris" in answer["choices"][0]["text"]


def test_the_config_is_the_sources_without_the_towers_and_with_every_width(gemma: Model) -> None:
    source = json.loads((gemma.source / "config.json").read_text())
    table = gemma.config.pop("quantization")
    assert gemma.config.pop("quantization_config") == table
    assert source.keys() - gemma.config.keys() == {"vision_config", "image_token_id", "vision_soft_tokens_per_image"}
    assert all(source[key] == value for key, value in gemma.config.items())
    assert all(key in ("group_size", "bits", "mode") or key.startswith("language_model.model.") for key in table), table
    gemma.config |= {"quantization": table, "quantization_config": table}


def test_tokenizer_template_and_licence_are_copied_byte_for_byte(gemma: Model) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "LICENSE"):
        assert (gemma.output / name).read_bytes() == (gemma.source / name).read_bytes()
    assert not (gemma.output / "preprocessor_config.json").exists()


def test_the_manifest_and_the_card_say_what_was_done(gemma: Model) -> None:
    manifest = json.loads((gemma.output / "configi.json").read_text())
    assert manifest["source"]["label"] == "source"
    assert manifest["policy"]["name"] == "config-i"
    assert manifest["files"].keys() == {path.name for path in gemma.output.iterdir()} - {"configi.json"}
    down = manifest["tensors"]["language_model.model.layers.2.experts.switch_glu.down_proj.weight"]
    assert down == {"role": "expert_down", "bits": 3, "group_size": 64}
    assert manifest["tensors"]["language_model.model.norm.weight"] == {"role": "other", "dtype": "BF16"}
    card = (gemma.output / "README.md").read_text()
    assert f"{gemma.plan.bits_per_weight:.4f}" in card
    assert f"{gemma.plan.parameters:,}" in card
    assert "rounded to nearest, without calibration" in card


def test_readers_may_map_the_files_into_memory(gemma: Model) -> None:
    header = read_header(gemma.output / "model.safetensors")
    assert json.loads((gemma.output / "model.safetensors").read_bytes()[8 : header.data])["__metadata__"] == {
        "format": "mlx"
    }
    for entry in header.entries.values():
        assert (header.data + entry.begin) % (4 if entry.dtype == "U32" else 2) == 0


def test_large_models_are_in_several_files_with_an_index(gemma: Model, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(gemma.source), HubOptions())
    plan = make_plan(checkpoint, "config-i", shard_bytes=500_000)
    build(checkpoint, plan, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert names == [f"model-{n:05d}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == plan.tensor_bytes
    assert verify(tmp_path / "out") == []
    after = weights(tmp_path / "out")
    assert index["weight_map"].keys() == after.keys()
    assert all(mx.array_equal(array, gemma.after[name]) for name, array in after.items())


def test_block_scaled_fp8_is_read_as_bfloat16(tmp_path: Path) -> None:
    config, shapes = llama(layers=5, hidden=256)
    source = write(tmp_path / "source", config, shapes, shards=1)
    before = weights(source)
    name = "model.layers.2.mlp.down_proj.weight"
    codes, scales = mx.to_fp8(before[name]), mx.array(np.linspace(0.5, 2, 2, dtype=np.float32).reshape(2, 1))
    mx.save_safetensors(str(source / "model.safetensors"), {**before, name: codes, f"{name}_scale_inv": scales})
    rewrite_fp8(source / "model.safetensors", name)
    for file in source.glob("model-*"):
        file.unlink()
    (source / "model.safetensors.index.json").unlink()
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    built(source, tmp_path / "out", "uniform-8")
    after = weights(tmp_path / "out")
    expected = (mx.from_fp8(codes, dtype=mx.float32) * mx.repeat(scales, 128, axis=0)).astype(mx.bfloat16)
    quantized = mx.quantize(expected, group_size=64, bits=8)
    for suffix, array in zip(("weight", "scales", "biases"), quantized, strict=True):
        assert mx.array_equal(after[f"{name.removesuffix('weight')}{suffix}"], array)


def rewrite_fp8(file: Path, name: str) -> None:
    """MLX writes fp8 codes as U8; the Hub's files say what they are."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header[name]["dtype"] = "F8_E4M3"
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight",
             "model.embed_tokens.weight"],
)  # fmt: skip
@pytest.mark.parametrize("bits", [b"\xc0\x7f", b"\x80\xff"], ids=["nan", "-inf"])
def test_values_that_are_not_finite_are_refused_by_name(name: str, bits: bytes, tmp_path: Path) -> None:
    source = write(tmp_path / "source", *llama(), shards=1)
    shard = source / "model-00001-of-00001.safetensors"
    header = read_header(shard)
    with shard.open("r+b") as file:
        file.seek(header.data + header.entries[name].begin)
        file.write(bits)
    with pytest.raises(SourceError, match=rf"{name} holds values that are not finite"):
        built(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_without_a_tokenizer_is_refused_at_once(tmp_path: Path) -> None:
    source = write(tmp_path / "source", *llama())
    (source / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match="holds no tokenizer"):
        built(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_is_there_already_is_used_or_left_alone(gemma: Model, tmp_path: Path) -> None:
    built(gemma.source, gemma.output)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("all my work")
    for output in (tmp_path / "other", tmp_path / "other" / "thesis.txt"):
        with pytest.raises(OutputError, match="was left unchanged"):
            built(gemma.source, output)
    with pytest.raises(OutputError, match="was left unchanged"):
        built(gemma.source, gemma.output, "uniform-4")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "all my work"
    assert verify(gemma.output) == []
    assert [path.name for path in gemma.output.parent.iterdir() if path.name.startswith(".")] == []


def test_an_empty_folder_is_nothing_in_the_way(gemma: Model, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    built(gemma.source, tmp_path / "out")
    assert verify(tmp_path / "out") == []


def test_a_memory_limit_that_is_too_small_is_a_sentence(gemma: Model, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(gemma.source), HubOptions())
    with pytest.raises(QuantizeError, match=r"memory limit of at least 0\.\d\d GB"):
        build(checkpoint, make_plan(checkpoint, "config-i"), tmp_path / "out", memory_limit=10_000_000)


def test_no_thread_that_hashes_tells_an_earlier_state_after_a_later_one(tmp_path: Path) -> None:
    told: list[int] = []
    calls, overtaken = itertools.count(), threading.Event()

    def progress(phase: str, done: int, total: int | None, text: str) -> None:
        if phase == "checking":
            if next(calls) == 0:
                # Held up until another comes, if one can.
                overtaken.wait(0.5)
            overtaken.set()
            told.append(done)

    checkpoint = open_checkpoint(str(write(tmp_path / "source", *llama())), HubOptions())
    build(checkpoint, make_plan(checkpoint, "uniform-4"), tmp_path / "out", progress=progress)
    assert told == sorted(told)
