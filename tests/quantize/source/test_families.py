"""Every family that can be built: what comes of a checkpoint in the Hub's layout is what mlx-lm itself makes of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model, load_model

from quantize.build.build import build
from quantize.errors import SourceError
from quantize.folder.verify import verify
from quantize.plan.plan import Plan, make_plan
from quantize.plan.report import exceptions
from quantize.source.checkpoint import HubOptions
from quantize.source.roles import role_of
from quantize.source.sources import open_checkpoint
from tests.support.checkpoints import write
from tests.support.families import config_of
from tests.support.hub_families import HUB_FAMILIES, hub_checkpoint, on_the_hub, write_hub_family
from tests.support.published import PUBLISHED

# Modules that are a matrix and stay one: routers, and coefficients of a few columns.
KEPT = ("router.proj", "mlp.gate", "block_sparse_moe.gate", "block_sparse_moe.router.layer", "mlp.router",
        "feed_forward.gate", "feed_forward.router", "shared_expert_gate", "altup.modality_router",
        "altup.correction_coefs", "altup.prediction_coefs")  # fmt: skip

# Tied, and multiplied by as it is.
LEFT_ALONE = {"llama4_text": ["model.embed_tokens"]}


def plan_of(source: Path, policy: str) -> Plan:
    return make_plan(open_checkpoint(str(source), HubOptions()), policy)


def built(source: Path, policy: str, folder: Path) -> Path:
    return build(open_checkpoint(str(source), HubOptions()), plan_of(source, policy), folder)


def weights_of(folder: Path, *, strict: bool = True) -> Mapping[str, mx.array]:
    """As mlx-lm loads them; mxfp4 multiplied out."""
    return dict(tree_flatten(dequantize_model(load_model(folder, strict=strict)[0]).parameters()))


# One of each way that tensors take is built every time, the rest by `make test-slow`.
ALWAYS = {"llama", "gemma3", "gemma4", "qwen3_moe", "gpt_oss", "qwen3_next", "deepseek_v3"}
BUILT = [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in HUB_FAMILIES]


@pytest.mark.parametrize("family", HUB_FAMILIES)
def test_what_is_kept_is_what_mlx_lm_loads_of_the_source(family: str, tmp_path: Path) -> None:
    same_as_mlx_lm(write_hub_family(tmp_path / "source", family), tmp_path)


def same_as_mlx_lm(source: Path, tmp_path: Path) -> None:
    theirs = weights_of(source, strict=False)
    ours = weights_of(built(source, "source", tmp_path / "kept"))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype, name
        assert mx.array_equal(ours[name], array), name


@pytest.mark.parametrize("family", BUILT)
def test_config_i_is_what_mlx_lm_quantizes_and_generates(family: str, tmp_path: Path) -> None:
    source = write_hub_family(tmp_path / "source", family)
    plan = plan_of(source, "config-i")
    folder = built(source, "config-i", tmp_path / "built")
    assert verify(folder) == []
    theirs = weights_of(source, strict=False)
    ours = dict(tree_flatten(load_model(folder)[0].parameters()))
    for output in plan.tensors:
        if output.spec is None:
            assert mx.array_equal(ours[output.name], theirs[output.name]), output.name
            continue
        quantized = mx.quantize(theirs[output.name], group_size=output.spec.group_size, bits=output.spec.bits)
        for suffix, array in zip(("weight", "scales", "biases"), quantized, strict=True):
            assert mx.array_equal(ours[f"{output.path}.{suffix}"], array), f"{output.path}.{suffix}"
    model, tokenizer = mlx_lm.load(str(folder))[:2]
    steps = list(mlx_lm.stream_generate(model, tokenizer, [5, 9, 40], max_tokens=3))
    assert steps
    assert mx.isfinite(steps[0].logprobs).all()


@pytest.mark.parametrize("family", HUB_FAMILIES)
def test_every_matrix_but_routers_can_be_quantized(family: str, tmp_path: Path) -> None:
    config, shapes = hub_checkpoint(family)
    plan = plan_of(write(tmp_path, config, shapes, holes=True), "uniform-8")
    assert [path for path in plan.kept_modules if not path.endswith(KEPT)] == LEFT_ALONE.get(family, [])


def test_what_mlx_lm_leaves_out_of_the_layers_is_named(tmp_path: Path) -> None:
    """mlx-lm 0.32.2 chooses ERNIE's experts without the bias that its makers add; towers and the like go unnamed."""
    source = write_hub_family(tmp_path / "source", "ernie4_5_moe")
    bias = "model.layers.*.mlp.moe_statics.e_score_correction_bias"
    line = f"{bias} (layers 1-5): left out; mlx-lm's model has no place for it"
    assert exceptions(plan_of(source, "uniform-4")) == [line]
    assert f"* {line}\n" in (built(source, "uniform-4", tmp_path / "built") / "README.md").read_text()
    # A layer that predicts the token after next, and angles that are computed.
    deepseek = plan_of(write_hub_family(tmp_path / "deepseek", "deepseek_v3"), "uniform-4")
    assert len(deepseek.dropped) == 2
    assert not any("left out" in line for line in exceptions(deepseek))


def test_gemma_3_has_the_names_of_newer_transformers_too(tmp_path: Path) -> None:
    config, shapes = hub_checkpoint("gemma3")
    renamed = {re.sub("^language_model.model|^(?=vision)", _newer, name): shape for name, shape in shapes.items()}
    assert "model.language_model.norm.weight" in renamed
    old = built(write(tmp_path / "old", config, shapes), "config-i", tmp_path / "built")
    new = built(write(tmp_path / "new", config, renamed), "config-i", tmp_path / "renamed")
    assert (new / "model.safetensors").read_bytes() == (old / "model.safetensors").read_bytes()


def _newer(match: re.Match[str]) -> str:
    return "model.language_model" if match[0] else "model."


# Paths that no rule for a family names, in architectures that are built all the same.
BY_WORDS: dict[str, tuple[str, str]] = {
    "backbone.layers.3.mixer.in_proj.weight": ("Linear", "attention"),
    "backbone.layers.3.mixer.shared_experts.down_proj.weight": ("Linear", "mlp_down"),
    "backbone.layers.3.mixer.switch_mlp.fc1.weight": ("SwitchLinear", "expert_gate_up"),
    "backbone.layers.3.mixer.switch_mlp.fc2.weight": ("SwitchLinear", "expert_down"),
    "model.layers.3.self_attn.o_a_proj.weight": ("SwitchLinear", "attention"),
    "model.layers.3.self_attn.gate_proj.weight": ("Linear", "attention"),
    "model.layers.3.mlp.gate.wg.weight": ("Linear", "router"),
    "model.layers.3.mlp.share_expert.up_proj.weight": ("Linear", "mlp_gate_up"),
    "model.h.3.attn.c_proj.weight": ("Linear", "attention"),
    "model.h.3.mlp.c_proj.weight": ("Linear", "mlp_down"),
    "transformer.blocks.3.ffn.experts.1.v1.weight": ("Linear", "expert_gate_up"),
    "transformer.blocks.3.ffn.experts.1.w2.weight": ("Linear", "expert_down"),
    "transformer.blocks.3.ffn.router.layer.weight": ("Linear", "router"),
    "model.transformer.blocks.3.ff_out.weight": ("Linear", "mlp_down"),
    "model.transformer.ff_out.weight": ("Linear", "lm_head"),
    "model.embed_out.weight": ("Linear", "lm_head"),
    "model.ngram_embeddings.post_projs.0.weight": ("Linear", "residual"),
}


@pytest.mark.parametrize("name", BY_WORDS)
def test_a_matrix_of_any_architecture_has_a_role(name: str) -> None:
    kind, role = BY_WORDS[name]
    shape = (4, 64, 64) if kind == "SwitchLinear" else (64, 64)
    assert role_of(name, shape, kind, quantizable=True) == role
    # What mlx-lm cannot quantize is kept.
    assert role_of(name, shape, "SomeBlock", quantizable=False) in ("other", role)


def test_an_architecture_without_rules_is_built(tmp_path: Path) -> None:
    source = write(tmp_path / "source", *on_the_hub(config_of("falcon_h1")))
    same_as_mlx_lm(source, tmp_path)
    assert verify(built(source, "config-i", tmp_path / "quantized")) == []
    load_model(tmp_path / "quantized")


def test_what_mlx_lm_computes_is_refused(tmp_path: Path) -> None:
    # Convolutions as they are published: then mlx-lm multiplies most matrices by a number.
    config, shapes = on_the_hub(config_of("falcon_h1"))
    published = {name: (shape[0], 1, shape[1]) if "conv1d.weight" in name else shape for name, shape in shapes.items()}
    with pytest.raises(SourceError, match="mlx-lm changes tensors of its falcon_h1 model in an unsupported way: "):
        plan_of(write(tmp_path, config, published, holes=True), "config-i")


def test_scales_that_do_not_fit_their_codes_are_named(tmp_path: Path) -> None:
    config, shapes = hub_checkpoint("gpt_oss")
    name = "model.layers.1.mlp.experts.down_proj_scales"
    shapes[name] = (*shapes[name][:-1], 1)
    with pytest.raises(SourceError, match=rf"{name} of the shape .* does not fit "):
        plan_of(write(tmp_path, config, shapes, holes=True), "config-i")


@pytest.mark.parametrize(("model", "bits_per_weight"), [("MiniMax-M2.7", 3.249), ("Qwen3.6-35B-A3B", 3.613)])
def test_config_i_has_the_published_bits_per_weight(model: str, bits_per_weight: float, tmp_path: Path) -> None:
    source = write(tmp_path, *on_the_hub(PUBLISHED[model]), holes=True)
    assert round(plan_of(source, "config-i").bits_per_weight, 3) == bits_per_weight


# The small Gemma 4 models: inputs for each layer, and last layers that use the keys of earlier ones.
GEMMA4_SMALL = {
    "model_type": "gemma4_text", "hidden_size": 64, "num_hidden_layers": 5, "intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 448,
    "max_position_embeddings": 2048, "torch_dtype": "bfloat16", "head_dim": 32, "global_head_dim": 64,
    "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 448, "num_kv_shared_layers": 2,
    "sliding_window_pattern": 3, "sliding_window": 64, "tie_word_embeddings": True,
}  # fmt: skip


def test_keys_that_a_small_gemma_4_never_uses_are_left_out(tmp_path: Path) -> None:
    config, shapes = on_the_hub(GEMMA4_SMALL)
    unused = {
        name.replace("layers.0.", "layers.4."): shape for name, shape in shapes.items() if "0.self_attn.k" in name
    }
    assert len(unused) == 2
    source = write(tmp_path / "source", config, shapes | unused)
    assert plan_of(source, "config-i").dropped == list(unused)
    same_as_mlx_lm(source, tmp_path)
