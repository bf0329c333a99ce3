"""Folders as people have them: what mlx-lm loads is loaded, what can be built from is served, else a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from quantize.build.build import build
from quantize.folder.verify import examine
from quantize.plan.plan import make_plan
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from server.engine.loading import LoadError, load
from tests.support import packed
from tests.support.checkpoints import llama
from tests.support.hub_families import hub_checkpoint
from tests.support.packed import blocks, fp8, write_packed
from tests.support.tiny_model import write_tiny_model

Weights = dict[str, mx.array]
TOKENS = mx.array([[5, 9, 40, 77]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


@pytest.fixture
def plain(folder: Path) -> mx.array:
    """The logits of the model before anything is done to its folder."""
    logits: mx.array = load_model(folder)[0](TOKENS)
    mx.eval(logits)
    return logits


def weights_of(folder: Path) -> Weights:
    return dict(mx.load(str(folder / "model.safetensors")))  # type: ignore[arg-type]


def save(folder: Path, weights: Weights, name: str = "model.safetensors") -> None:
    mx.eval(weights)
    mx.save_safetensors(str(folder / name), weights, metadata={"format": "mlx"})


def configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def quantize(folder: Path, mode: str, group: int, bits: int) -> None:
    model, _ = load_model(folder)
    nn.quantize(model, group, bits, mode=mode)
    save(folder, dict(tree_flatten(model.parameters())))


def index(folder: Path, **weight_map: str) -> None:
    named = {name.replace("__", "."): shard for name, shard in weight_map.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": named}))


def in_two_shards(folder: Path) -> None:
    names = sorted(weights := weights_of(folder))
    (folder / "model.safetensors").unlink()
    save(folder, {name: weights[name] for name in names[:9]}, "model-00001-of-00002.safetensors")
    save(folder, {name: weights[name] for name in names[9:]}, "model-00002-of-00002.safetensors")


def renamed(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.00.safetensors")


def beside(folder: Path) -> None:
    save(folder, {"base_model.lora_a": mx.zeros((4, 4))}, "adapters.safetensors")
    save(folder, {"tok_embeddings.weight": mx.zeros((4, 4))}, "consolidated.safetensors")


def with_head(name: str) -> Callable[[Path], None]:
    return lambda folder: save(folder, weights_of(folder) | {name: mx.zeros((1, 64))})


def twice(folder: Path) -> None:
    save(folder, weights_of(folder), "model-00001-of-00001.safetensors")


def truth_of_tables(folder: Path) -> None:
    configure(folder, quantization={"group_size": 64, "bits": 4}, quantization_config={"quant_method": "hqq"})


# What is done to a folder that answers as before.
HARMLESS: dict[str, Callable[[Path], None]] = {
    "nothing": lambda _: None,
    "two shards without an index": in_two_shards,
    "an index of files that are not there": lambda f: index(f, model__norm__weight="model-00001-of-00002.safetensors"),
    "an index that lacks most tensors": lambda f: index(f, model__norm__weight="model.safetensors"),
    "an index that is no JSON": lambda f: (f / "model.safetensors.index.json").write_text("{"),  # type: ignore[dict-item, return-value]
    "a name that mlx-lm does not look for": renamed,
    "adapters and the maker's own file beside it": beside,
    "the same shard under two names": twice,
    "a table of quantization for weights that are not quantized": truth_of_tables,
    "the table of another tool": lambda f: configure(f, text_config=None, quantization_config={"quant_method": "hqq"}),
    "a head that scores": with_head("score.weight"),
    "a head of values": with_head("v_head.summary.weight"),
    "scales of activations": with_head("model.layers.0.self_attn.k_proj.k_scale"),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_it_answers_as_before(case: str, folder: Path, plain: mx.array) -> None:
    HARMLESS[case](folder)
    assert examine(folder, thorough=True).problems == []
    assert mx.array_equal(load(folder)[0](TOKENS), plain)


@pytest.mark.parametrize("name", ["[4bit] model", "model?", "a*b", "läma 3", "#1 & more", "model[!x]"])
def test_any_name_of_a_folder_will_do(name: str, folder: Path, plain: mx.array) -> None:
    odd = folder.rename(folder.parent / name)
    assert examine(odd, thorough=True).problems == []
    assert mx.array_equal(load(odd)[0](TOKENS), plain)


@pytest.mark.parametrize(
    ("mode", "group", "bits", "tables"),
    [
        ("mxfp4", 32, 4, {"quantization_config": {"quant_method": "mxfp4"}}),
        ("mxfp8", 32, 8, {"quantization_config": {"quant_method": "mxfp8"}}),
        ("nvfp4", 16, 4, {"quantization": {"mode": "nvfp4", "group_size": 16, "bits": 4}}),
        ("affine", 32, 4, {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}),
        ("affine", 64, 8, {"quantization": {"group_size": 64, "bits": 4}}),
        ("affine", 64, 4, {"quantization": {"group_size": 64, "bits": 4, "vision_tower.proj": {"bits": 8}, "by": "x"}}),
        ("affine", 64, 4, {"quantization": {"group_size": 64, "bits": 4},
                           "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}),
    ],
)  # fmt: skip
def test_what_mlx_lm_loads_quantized_stays_quantized(
    mode: str, group: int, bits: int, tables: dict[str, Any], folder: Path
) -> None:
    quantize(folder, mode, group, bits)
    configure(folder, **tables)
    expected, _ = load_model(folder)
    assert examine(folder, thorough=True).problems == []
    model, _, size = load(folder)
    assert mx.array_equal(model(TOKENS), expected(TOKENS))
    assert size == sum(array.nbytes for _, array in tree_flatten(expected.parameters()))


LAYOUTS = {
    "fp8 in blocks": (fp8(blocks(128, 128)), {"quant_method": "fp8"}),
    "fp8 in blocks of 32": (fp8(blocks(32, 32)), {"quant_method": "fp8", "weight_block_size": [32, 32]}),
    "gptq": (packed.gptq(4, 64, in_order=False), {"quant_method": "gptq", "bits": 4, "group_size": 64}),
    "nvfp4": (packed.fp4("nvfp4"), {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["llama", "ministral3"])
def test_what_can_be_built_from_is_served(family: str, layout: str, tmp_path: Path) -> None:
    """mlx-lm takes ministral3's codes for weights."""
    packer, table = LAYOUTS[layout]
    config, shapes = llama(layers=2, hidden=256) if family == "llama" else hub_checkpoint(family)
    source, _ = write_packed(tmp_path / "source", config | {"quantization_config": table}, shapes, packer)
    checkpoint = open_checkpoint(str(source), HubOptions())
    build(checkpoint, make_plan(checkpoint, "source"), tmp_path / "built")
    assert mx.array_equal(load(source)[0](TOKENS), load(tmp_path / "built")[0](TOKENS))


def poisoned(folder: Path) -> None:
    weights = weights_of(folder)
    weights["model.norm.weight"] = mx.zeros(64)
    save(folder, weights, "model-00002-of-00002.safetensors")


def as_codes(folder: Path) -> None:
    weights = weights_of(folder)
    weights["model.layers.0.mlp.up_proj.weight"] = mx.zeros((128, 64), mx.uint8)
    save(folder, weights)


def dropped(folder: Path) -> None:
    weights = weights_of(folder)
    del weights["model.norm.weight"]
    save(folder, weights)


def cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])


def reshaped(folder: Path) -> None:
    save(folder, weights_of(folder) | {"model.norm.weight": mx.ones(32)})


def lost_shard(folder: Path) -> None:
    index(folder, x="model-00009-of-00009.safetensors")


# What is done, and what is said: before anything is loaded, or by whoever loads it.
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a shard that says something else": (poisoned, "is one thing in .* and another in .*: mlx-lm takes either"),
    "a file cut short": (cut, "it is cut short or damaged"),
    "a shard that is missing": (lost_shard, "model-00009-of-00009.safetensors is missing"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "lacks weights"),
    "a tensor that is missing": (dropped, r"Missing 1 parameters: model\.norm\.weight"),
    "a shape that is not the model's": (reshaped, r"Expected shape \(64,\) but received shape \(32,\).*norm"),
    "codes without a scale": (as_codes, r"up_proj\.weight holds codes, and nothing says how they are packed"),
    "a layer that no model has": (with_head("model.layers.0.gate.weight"), r"not in model: model\.layers\.0\.gate"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_answer_wrongly_is_refused_in_a_sentence(case: str, folder: Path) -> None:
    change, sentence = REFUSED[case]
    change(folder)
    found = examine(folder, thorough=False).problems
    if not found:
        with pytest.raises(LoadError) as refused:
            load(folder)
        found = [str(refused.value)]
    assert any(re.search(sentence, problem) for problem in found), found
