"""Checkpoints as other tools save them: other beginnings of names, buffers, transformers 5's config.json, ties unsaid.

Each is built to the very bytes that come of it in the usual form, or computed as transformers says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model

from quantize.build.build import build
from quantize.errors import SourceError
from quantize.forward.capture import finish
from quantize.forward.loading import load_folder
from quantize.forward.models import open_model
from quantize.forward.store import InMemory
from quantize.forward.stream import Stream
from quantize.plan.plan import Plan, make_plan
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from quantize.source.spelled_out import spelled_out
from tests.support.architectures import write_architecture
from tests.support.checkpoints import llama, write, write_tokenizer
from tests.support.hub_families import hub_checkpoint
from tests.support.packed import as_bf16, from_bf16, write_stored

TOKENS = mx.array([[5, 9, 40, 17, 33, 2, 8, 100]])


def plan_of(source: Path, policy: str = "uniform-4") -> Plan:
    return make_plan(open_checkpoint(str(source), HubOptions()), policy)


def built(source: Path, output: Path, policy: str = "uniform-4") -> Path:
    return build(open_checkpoint(str(source), HubOptions()), plan_of(source, policy), output)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix("model."),
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
    ],
    ids=["a model without its head's class", "DDP", "torch.compile", "PEFT"],
)
@pytest.mark.parametrize("tied", [True, False])
def test_names_may_begin_otherwise(tied: bool, rename: Callable[[str], str], tmp_path: Path) -> None:
    config, shapes = llama(layers=2)
    config["tie_word_embeddings"] = tied
    if not tied:
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    usual = built(write(tmp_path / "usual", config, shapes), tmp_path / "a")
    other = built(write(tmp_path / "other", config, {rename(n): s for n, s in shapes.items()}), tmp_path / "b")
    assert (other / "model.safetensors").read_bytes() == (usual / "model.safetensors").read_bytes()


def test_other_beginnings_are_loaded_and_streamed_too(tmp_path: Path) -> None:
    """By the server and by a calibration, which read the source themselves."""
    config, shapes = llama(layers=2)
    usual = write(tmp_path / "usual", config, shapes)
    other = write(tmp_path / "other", config, {name.removeprefix("model."): shape for name, shape in shapes.items()})
    expected = load_model(usual)[0](TOKENS)
    assert mx.array_equal(load_folder(other)(TOKENS), expected)
    stream = Stream(open_model(str(other), HubOptions()), [TOKENS], InMemory())
    stream.run()
    assert mx.array_equal(finish(stream.model.make(None), TOKENS, stream.hidden(0)), expected)


def test_where_no_beginning_helps_the_name_in_the_file_is_told(tmp_path: Path) -> None:
    config, shapes = llama(layers=2)
    shapes["model.layers.0.self_attn.q_proj.lora_A.weight"] = (8, 64)
    with pytest.raises(SourceError, match=r"The tensor model\..*\.q_proj\.lora_A\.weight has no known"):
        plan_of(write(tmp_path, config, shapes, holes=True))


@pytest.mark.parametrize(
    "name",
    [
        "model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.cos_cached", "model.position_ids",
        "model.layers.0.self_attn.masked_bias", "model.layers.0.self_attn.bias", "model.embed_tokens.position_ids",
    ],
)  # fmt: skip
def test_what_the_config_says_anyway_is_left_out(name: str, tmp_path: Path) -> None:
    config, shapes = llama(layers=2)
    source = write(tmp_path, config, shapes | {name: (1, 1, 8, 8)}, holes=True)
    assert plan_of(source).dropped == [name]
    # But not where a model has such a thing.
    with pytest.raises(SourceError, match=r"q_proj\.bias has no known role"):
        plan_of(write(tmp_path / "b", config, shapes | {"model.layers.0.self_attn.q_proj.bias": (64,)}, holes=True))


def test_a_head_that_is_nowhere_is_the_embedding(tmp_path: Path) -> None:
    """transformers leaves the flag out where it is the class's default, which mlx-lm's Mistral 3 does not share."""
    config, shapes = hub_checkpoint("mistral3")
    unsaid = config | {"text_config": {k: v for k, v in config["text_config"].items() if "tie" not in k}}
    del unsaid["tie_word_embeddings"]
    headless = {name: shape for name, shape in shapes.items() if "lm_head" not in name}
    model, made = load_model(built(write(tmp_path / "tied", unsaid, headless), tmp_path / "a"))
    assert made["tie_word_embeddings"] is made["text_config"]["tie_word_embeddings"] is True
    assert mx.isfinite(model(TOKENS)).all()
    assert "lm_head" not in model.language_model
    _, made = load_model(built(write(tmp_path / "apart", unsaid, shapes), tmp_path / "b"))
    assert made["text_config"]["tie_word_embeddings"] is False
    # What is said counts.
    with pytest.raises(SourceError, match=r"lacks language_model\.lm_head\.weight"):
        plan_of(write(tmp_path / "said", config, headless, holes=True))


def test_an_index_may_name_a_head_that_nobody_needs(tmp_path: Path) -> None:
    config, shapes = llama(layers=2)
    source = write(tmp_path / "source", config, shapes, shards=1)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = "model-00001-of-00001.safetensors"
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    load_model(built(source, tmp_path / "out"))
    # What is needed and not there is told by its name.
    index["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"lacks the shard model-00002-of-00002\.safetensors"):
        plan_of(source)


# ---- transformers 5's config.json


def test_rope_in_one_table_is_computed_as_in_two_places(tmp_path: Path) -> None:
    """In the folder that is built, by stock mlx-lm; and of the source itself, as the server loads it."""
    config, shapes = llama(layers=2)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}  # fmt: skip
    older = config | {"rope_theta": 500_000.0, "rope_scaling": scaling}
    newer = {name: value for name, value in config.items() if name != "rope_theta"}
    newer["rope_parameters"] = {"rope_theta": 500_000.0, **scaling}
    expected = load_model(write(tmp_path / "older", older, shapes))[0](TOKENS)
    source = write(tmp_path / "newer", newer, shapes)
    # Otherwise the test says nothing: mlx-lm alone computes something else.
    assert not mx.allclose(load_model(source)[0](TOKENS), expected, atol=1e-3)
    assert mx.array_equal(load_model(built(source, tmp_path / "out", "source"))[0](TOKENS), expected)
    assert mx.array_equal(load_folder(source)(TOKENS), expected)


DEFAULT = {"rope_type": "default", "rope_theta": 7.0}


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({"rope_parameters": DEFAULT}, {"rope_theta": 7.0, "rope_scaling": None}),
        # What is said in the older place already stays.
        ({"rope_parameters": DEFAULT, "rope_theta": 5.0}, {"rope_scaling": None}),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 7.0, "partial_rotary_factor": 0.5}},
            {
                "rope_theta": 7.0,
                "partial_rotary_factor": 0.5,
                "rope_scaling": {
                    "rope_type": "yarn", "type": "yarn", "factor": 4.0, "rope_theta": 7.0, "partial_rotary_factor": 0.5,
                },
            },
        ),
        (
            {"rope_parameters": {"full_attention": DEFAULT, "sliding_attention": DEFAULT | {"rope_theta": 3.0}}},
            {"rope_theta": 7.0, "rope_local_base_freq": 3.0, "swa_rope_theta": 3.0, "rope_scaling": None},
        ),
        (
            {"model_type": "gpt_neox", "rope_parameters": DEFAULT | {"partial_rotary_factor": 0.25}},
            {"rope_theta": 7.0, "rotary_emb_base": 7.0, "partial_rotary_factor": 0.25, "rotary_pct": 0.25,
             "rope_scaling": None},
        ),
        ({"num_local_experts": 8}, {"num_experts": 8}),
        ({"num_experts": 8, "num_local_experts": 4}, {}),
        ({"rope_parameters": None}, {}),
        ({"rope_parameters": "none"}, {}),
    ],
)  # fmt: skip
def test_what_moved_stands_in_both_places(given: dict[str, Any], added: dict[str, Any]) -> None:
    assert spelled_out(given) == given | added
    assert spelled_out({"text_config": given})["text_config"] == given | added


def test_experts_by_their_newer_name(tmp_path: Path) -> None:
    config, shapes = hub_checkpoint("qwen3_moe")
    usual = built(write(tmp_path / "usual", config, shapes), tmp_path / "a")
    config["num_local_experts"] = config.pop("num_experts")
    newer = built(write(tmp_path / "newer", config, shapes), tmp_path / "b")
    assert (newer / "model.safetensors").read_bytes() == (usual / "model.safetensors").read_bytes()
    load_model(newer)


def test_the_text_model_of_qwen_3_5_alone(tmp_path: Path) -> None:
    config, shapes = hub_checkpoint("qwen3_5")
    alone = config["text_config"] | {"model_type": "qwen3_5_text"}
    names = {n.replace("model.language_model.", "model."): s for n, s in shapes.items() if "visual" not in n}
    model, made = load_model(built(write(tmp_path / "source", alone, names), tmp_path / "out"))
    assert made["model_type"] == "qwen3_5"
    assert mx.isfinite(model(TOKENS)).all()


def test_gpt_oss_unpacked_is_what_was_packed(tmp_path: Path) -> None:
    """In bfloat16, as fine-tunes are: experts stored as (inputs, outputs), gate and up by turns."""
    config, shapes = hub_checkpoint("gpt_oss")
    config = {name: value for name, value in config.items() if name != "quantization_config"}
    draw = np.random.default_rng(0)
    stored = {}
    for name, shape in shapes.items():
        if name.endswith("_scales"):
            continue
        if name.endswith("_blocks"):
            experts, outputs, groups, _ = shape
            name, shape = name.removesuffix("_blocks"), (experts, groups * 32, outputs)
        stored[name] = as_bf16(draw.normal(0, 0.05, shape))
    model = load_model(built(write_stored(tmp_path / "source", config, [stored]), tmp_path / "out", "source"))[0]
    for number, layer in enumerate(model.layers):
        path = f"model.layers.{number}.mlp.experts"
        fused = from_bf16(stored[f"{path}.gate_up_proj"][1])
        experts = layer.mlp.experts
        for matrix, expected in (
            (experts.gate_proj, fused[..., ::2]),
            (experts.up_proj, fused[..., 1::2]),
            (experts.down_proj, from_bf16(stored[f"{path}.down_proj"][1])),
        ):
            assert np.array_equal(np.array(matrix.weight.astype(mx.float32)), expected.swapaxes(1, 2))


# ---- what mlx-lm leaves alone


def test_what_mlx_lm_never_quantizes_is_kept_and_named(tmp_path: Path) -> None:
    """Kimi K3 multiplies by one of its matrices without its module: quantized, it would not load."""
    write_tokenizer(write_architecture(tmp_path / "source", "kimi_k3"))
    plan = plan_of(tmp_path / "source")
    kept = [output.path for output in plan.tensors if output.left_alone]
    assert kept
    assert all(path.endswith("res_proj") for path in kept)
    model = load_model(built(tmp_path / "source", tmp_path / "out"))[0]
    assert mx.isfinite(model(TOKENS % 128)).all()


def test_a_module_whose_own_form_mlx_lm_cannot_load_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"mlx-lm cannot quantize .*qkv_proj"):
        plan_of(write_architecture(tmp_path, "afm7"))
