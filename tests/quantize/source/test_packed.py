"""Packed sources are built from exactly the values that they stand for, or refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from quantize.build.build import build
from quantize.errors import SourceError
from quantize.plan.plan import make_plan
from quantize.plan.report import exceptions
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from tests.support import packed
from tests.support.checkpoints import llama, write
from tests.support.hub_families import hub_checkpoint
from tests.support.packed import Matrix, Packer, Stored, as_bf16, blocks, fp8, write_packed, write_stored
from tests.support.packed import words_apart as apart

Table = dict[str, Any]


def per_row(shape: tuple[int, ...], draw: np.random.Generator) -> tuple[Stored, Matrix]:
    _, scales = blocks(1, 0)(shape, draw)
    return ("F32", scales[:, 0].astype(np.float32)), scales


def one(*shape: int) -> Any:
    return lambda _, draw: (("F32", np.full(shape, 0.0017, np.float32)), np.float64(np.float32(0.0017)))


def exponents(dtype: str) -> Any:
    def make(shape: tuple[int, ...], draw: np.random.Generator) -> tuple[Stored, Matrix]:
        grid = (shape[0], shape[1] // 32)
        codes = draw.integers(110, 120, grid, np.uint8)
        return (dtype, codes), packed.spread(2.0 ** (codes.astype(np.float64) - 127), (1, 32), shape)

    return make


def in_bf16(shape: tuple[int, ...], draw: np.random.Generator) -> tuple[Stored, Matrix]:
    (_, scales), _ = blocks(128, 128)(shape, draw)
    stored = as_bf16(scales)
    return stored, packed.spread(packed.from_bf16(stored[1]), (128, 128), shape)


def groups(bits: int, size: int) -> Table:
    weights = {"num_bits": bits, "group_size": size or None, "strategy": "group" if size else "channel"}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


FP8 = {"quant_method": "fp8"}
NVFP4 = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
MXFP4 = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
LAYOUTS: dict[str, tuple[Packer, Table]] = {
    "blocks of 128": (fp8(blocks(128, 128)), FP8 | {"weight_block_size": [128, 128]}),
    "blocks of 64": (fp8(blocks(64, 64)), FP8 | {"weight_block_size": [64, 64]}),
    "blocks of 32 x 64": (fp8(blocks(32, 64)), FP8 | {"weight_block_size": [32, 64]}),
    "blocks of 96, the last ones cut": (fp8(blocks(96, 96)), FP8 | {"weight_block_size": [96, 96]}),
    "blocks of 128 that nothing declares": (fp8(blocks(128, 128)), FP8),
    "blocks of 64 that nothing declares": (fp8(blocks(64, 64)), FP8),
    "blocks with scales in bfloat16": (fp8(in_bf16), FP8),
    "a scale a row": (fp8(blocks(1, 0), suffix="_scale"), {"quant_method": "fbgemm_fp8"}),
    "a scale a row, one axis": (fp8(per_row, suffix="_scale"), {"quant_method": "compressed-tensors"}),
    "a scale a column": (fp8(blocks(0, 1)), FP8),
    "one scale": (fp8(one()), FP8),
    "one scale of one axis": (fp8(one(1), suffix="_scale"), {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "one scale of two axes": (fp8(one(1, 1)), FP8 | {"weight_block_size": [128, 128]}),
    "exponents": (fp8(exponents("U8")), FP8 | {"weight_block_size": [1, 32]}),
    "exponents by name": (fp8(exponents("F8_E8M0")), {"quant_method": "mxfp8"}),
    "five bits of exponent": (fp8(blocks(128, 128), dtype="F8_E5M2"), FP8),
    "int8": (packed.int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "gptq": (packed.gptq(4, 64), {"quant_method": "gptq", "bits": 4, "group_size": 64}),
    "gptq, out of order": (packed.gptq(4, 64, in_order=False), {"quant_method": "gptq", "bits": 4, "group_size": 64}),
    "gptq's second format": (
        packed.gptq(4, 64, less=0),
        {"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "gptq_v2"},
    ),
    "gptq's second format, by a newer key": (
        packed.gptq(2, 64, less=0),
        {"quant_method": "gptq", "bits": 2, "group_size": 64, "format": "gptq_v2", "version": "gemm"},
    ),
    "gptq's second format, of auto-round": (
        packed.gptq(4, 64, less=0),
        {"quant_method": "auto-round", "bits": 4, "group_size": 64, "packing_format": "auto_round:gptq_v2"},
    ),
    "gptq's first format for exllama's second kernel": (
        packed.gptq(4, 64),
        {"quant_method": "auto-round", "bits": 4, "group_size": 64, "packing_format": "auto_round:gptq:exllamav2"},
    ),
    "gptq of 3 bits": (packed.gptq(3, 128), {"quant_method": "gptq", "bits": 3, "group_size": 128}),
    "gptq of 8 bits": (packed.gptq(8, 128), {"quant_method": "gptq", "bits": 8, "group_size": 128}),
    "awq": (packed.awq(64), {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}),
    "compressed": (packed.compressed(4, 32), groups(4, 32)),
    "compressed, with zeros": (packed.compressed(4, 64, symmetric=False), groups(4, 64)),
    "compressed, 8 bits with zeros": (packed.compressed(8, 64, symmetric=False), groups(8, 64)),
    "compressed, with a zero a row": (packed.compressed(4, 0, symmetric=False), groups(4, 0)),
    "compressed, zeros not packed": (packed.compressed(4, 32, symmetric=False, zeros_apart=True), groups(4, 32)),
    "compressed, 8-bit zeros not packed": (packed.compressed(8, 32, symmetric=False, zeros_apart=True), groups(8, 32)),
    "compressed, 3 bits in a stream": (packed.compressed(3, 32, symmetric=False), groups(3, 32)),
    "compressed, 3 bits word by word": (packed.compressed(3, 64, symmetric=False, words=apart), groups(3, 64)),
    "compressed, 6 bits in a stream": (packed.compressed(6, 64), groups(6, 64)),
    "compressed, 5 bits word by word": (packed.compressed(5, 64, words=apart), groups(5, 64)),
    "int8, with a zero a row": (packed.int8_with_zeros(128), {"quant_method": "compressed-tensors"}),
    "int8, with zeros in groups": (packed.int8_with_zeros(64), {"quant_method": "compressed-tensors"}),
    "compressed, 8 bits a row": (packed.compressed(8, 0), groups(8, 0)),
    "mxfp4": (packed.fp4("mxfp4"), MXFP4),
    "nvfp4": (packed.fp4("nvfp4"), NVFP4),
    "nvfp4 of modelopt": (packed.fp4("modelopt"), {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "mlx": (packed.mlx(4, 64), {"bits": 4, "group_size": 64}),
    "mlx, another width than the default": (packed.mlx(6, 64), {"bits": 4, "group_size": 64}),
    "mlx in mxfp8": (packed.mlx(8, 32, "mxfp8"), {"bits": 8, "group_size": 32, "mode": "mxfp8"}),
    "mlx in nvfp4": (packed.mlx(4, 16, "nvfp4"), {"bits": 4, "group_size": 16, "mode": "nvfp4"}),
}


def packed_source(folder: Path, packer: Packer, table: Table, *, apart: bool = False) -> tuple[Path, dict[str, Matrix]]:
    """A llama whose matrices are packed, and all its tensors exactly; `apart`: the codes in a shard of their own."""
    config, shapes = llama(layers=2, hidden=256, width=384)
    key = "quantization" if "quant_method" not in table else "quantization_config"
    return write_packed(folder, config | {key: table}, shapes, packer, apart=apart)


def built(source: Path, output: Path, policy: str = "source") -> dict[str, mx.array]:
    checkpoint = open_checkpoint(str(source), HubOptions())
    build(checkpoint, make_plan(checkpoint, policy), output)
    weights: dict[str, mx.array] = {}
    for file in sorted(output.glob("*.safetensors")):
        weights |= mx.load(str(file))  # type: ignore[arg-type]
    return weights


def rounded(exact: Matrix, like: mx.array) -> mx.array:
    return mx.array(exact.astype(np.float32)).astype(like.dtype)


def assert_exact(weights: Mapping[str, mx.array], exact: Mapping[str, Matrix]) -> None:
    assert weights.keys() == exact.keys()
    wrong = [name for name, array in weights.items() if not mx.array_equal(array, rounded(exact[name], array))]
    assert wrong == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_built_is_what_was_packed(layout: str, tmp_path: Path) -> None:
    packer, table = LAYOUTS[layout]
    source, exact = packed_source(tmp_path / "source", packer, table)
    assert_exact(built(source, tmp_path / "out"), exact)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"quantization", "quantization_config"} & config.keys()
    load_model(tmp_path / "out")


@pytest.mark.parametrize("layout", ["blocks of 128", "a scale a row", "gptq, out of order", "awq", "mxfp4", "mlx"])
def test_scales_may_stand_in_another_shard(layout: str, tmp_path: Path) -> None:
    source, exact = packed_source(tmp_path / "source", *LAYOUTS[layout], apart=True)
    assert_exact(built(source, tmp_path / "out"), exact)


def test_gpt_oss_codes_and_scales_may_stand_in_different_shards(tmp_path: Path) -> None:
    config, shapes = hub_checkpoint("gpt_oss")
    draw = np.random.default_rng(0)
    stored: dict[str, Stored] = {}
    for name, shape in shapes.items():
        if name.endswith("_blocks"):
            stored[name] = ("U8", draw.integers(0, 256, shape, np.uint8))
        elif name.endswith("_scales"):
            stored[name] = ("U8", draw.integers(120, 126, shape, np.uint8))
        else:
            stored[name] = as_bf16(draw.normal(0, 0.05, shape))
    scales = {name: array for name, array in stored.items() if name.endswith("_scales")}
    rest = {name: array for name, array in stored.items() if name not in scales}
    together = built(write_stored(tmp_path / "one", config, [stored]), tmp_path / "a")
    apart = built(write_stored(tmp_path / "two", config, [rest, scales]), tmp_path / "b")
    assert together.keys() == apart.keys()
    assert all(mx.array_equal(array, apart[name]) for name, array in together.items())


@pytest.mark.parametrize("level", ["text_config", "top"])
def test_a_packing_counts_wherever_the_config_declares_it(level: str, tmp_path: Path) -> None:
    """Blocks of 96 are nothing that shapes alone tell."""
    packer, table = LAYOUTS["blocks of 96, the last ones cut"]
    config, shapes = hub_checkpoint("gemma3")
    declared = {"quantization_config": table}
    config = config | declared if level == "top" else config | {"text_config": config["text_config"] | declared}
    source, exact = write_packed(tmp_path / "source", config, shapes, packer)
    kept = {name: matrix for name, matrix in exact.items() if not name.startswith("vision")}
    assert_exact(built(source, tmp_path / "out"), kept)
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("family", ["deepseek_v3", "minimax_m2", "llama4"])
def test_fp8_under_moved_matrices_is_as_mlx_lm_has_it(family: str, tmp_path: Path) -> None:
    """Stacked experts; keys that are transposed by head; matrices that are stored the other way round."""
    config, shapes = hub_checkpoint(family)
    source, exact = write_packed(tmp_path / "fp8", config | {"quantization_config": FP8}, shapes, fp8(blocks(128, 128)))
    plain = {name: as_bf16(np.array(rounded(matrix, mx.zeros(0, mx.bfloat16)).astype(mx.float32)))
             for name, matrix in exact.items()}  # fmt: skip
    write_stored(tmp_path / "plain", config, [plain])
    expected = dict(tree_flatten(load_model(tmp_path / "plain")[0].parameters()))
    weights = built(source, tmp_path / "out")
    assert weights.keys() == expected.keys()
    assert all(mx.array_equal(array, expected[name]) for name, array in weights.items())


def test_awq_is_near_what_mlx_lm_makes_of_it(tmp_path: Path) -> None:
    """mlx-lm rounds zero * scale to float16 on the way."""
    source, _ = packed_source(tmp_path / "source", *LAYOUTS["awq"])
    model, _ = load_model(source)
    weights = built(source, tmp_path / "out")
    for path, module in model.named_modules():
        if hasattr(module, "bits"):
            theirs = mx.dequantize(module.weight, module.scales, module.biases, module.group_size, module.bits)
            assert mx.allclose(theirs, weights[f"{path}.weight"], atol=2e-5), path


def test_an_mlx_model_with_experts_is_built_again(tmp_path: Path) -> None:
    """What was built here, as a source: its matrices are those that mlx-lm dequantizes."""
    config, shapes = hub_checkpoint("qwen3_moe")
    source, _ = write_packed(tmp_path / "source", config, shapes, fp8(blocks(128, 128)))
    built(source, tmp_path / "quantized", "config-i")
    model, _ = load_model(tmp_path / "quantized")
    weights = built(tmp_path / "quantized", tmp_path / "out")
    for path, module in model.named_modules():
        if hasattr(module, "bits"):
            parts = (module.weight, module.scales.astype(mx.float32), module.biases.astype(mx.float32))
            exact = mx.dequantize(*parts, group_size=module.group_size, bits=module.bits)
            assert mx.array_equal(exact.astype(mx.bfloat16), weights[f"{path}.weight"]), path


def test_scales_of_activations_are_left_out(tmp_path: Path) -> None:
    source, exact = packed_source(tmp_path / "source", *LAYOUTS["one scale"])
    extra = {
        f"model.layers.1.{name}": ("F32", np.ones((), np.float32))
        for name in ("mlp.up_proj.activation_scale", "mlp.up_proj.input_scale", "self_attn.k_proj.k_scale",
                     "self_attn.v_scale", "self_attn.q_proj.output_scale", "mlp.down_proj.input_scale_ub")
    }  # fmt: skip
    index = json.loads((source / "model.safetensors.index.json").read_text())
    write_stored(tmp_path / "extra", {}, [extra])
    (tmp_path / "extra" / "model-00001-of-00001.safetensors").rename(source / "model-x.safetensors")
    index["weight_map"] |= dict.fromkeys(extra, "model-x.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_exact(built(source, tmp_path / "out"), exact)


@pytest.mark.parametrize(
    ("layout", "table", "sentence"),
    [
        ("blocks of 64", FP8 | {"weight_block_size": [128, 128]}, r"_scale_inv of the shape \[\d, \d\] does not fit"),
        ("blocks of 64", FP8 | {"weight_block_size": "64"}, "weight_block_size is not two numbers"),
        ("blocks of 96, the last ones cut", FP8, "does not fit"),
        ("gptq", {"quant_method": "gptq", "bits": 8, "group_size": 64}, "does not fit"),
        ("gptq", {"quant_method": "gptq", "bits": 5, "group_size": 64}, "by gptq in 5 bits, which cannot be undone"),
        ("awq", {"quant_method": "awq", "bits": 4, "group_size": 128}, "does not fit"),
        ("compressed", groups(8, 32), "does not say how .* is packed"),
        ("compressed, 3 bits in a stream", groups(3, 0), "does not say how .* is packed"),
        ("mlx", {"bits": 4, "group_size": 96}, "does not fit"),
        ("mlx", {"quant_method": "hqq"}, "quantized with hqq, which cannot be undone here"),
    ],
)
def test_what_does_not_fit_is_one_sentence(layout: str, table: Table, sentence: str, tmp_path: Path) -> None:
    source, _ = packed_source(tmp_path / "source", LAYOUTS[layout][0], table)
    with pytest.raises(SourceError, match=sentence):
        make_plan(open_checkpoint(str(source), HubOptions()), "source")


def test_fp8_without_scales_is_taken_at_its_word_where_nothing_is_declared(tmp_path: Path) -> None:
    def cast(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> tuple[dict[str, Stored], Matrix]:
        stored, exact = fp8(lambda *_: (("F32", np.ones(())), np.float64(1)))(name, shape, draw)
        return {name: stored[name]}, exact

    config, shapes = llama(layers=2)
    source, exact = write_packed(tmp_path / "source", config, shapes, cast)
    assert_exact(built(source, tmp_path / "out"), exact)
    source, _ = write_packed(tmp_path / "declared", config | {"quantization_config": FP8}, shapes, cast)
    with pytest.raises(SourceError, match=r"The fp8 tensor .*q_proj.weight has no scale; .*weight_scale_inv would be"):
        make_plan(open_checkpoint(str(source), HubOptions()), "source")


def with_zeros_for_biases(packer: Packer) -> Packer:
    def pack(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> tuple[dict[str, Stored], Matrix]:
        stored, exact = packer(name, shape, draw)
        bias = np.zeros(shape[0], np.float16)
        return stored | {f"{name.removesuffix('weight')}bias": ("F16", bias)}, exact

    return pack


def test_biases_that_gptq_stores_for_every_matrix_are_left_out_where_the_model_has_none(tmp_path: Path) -> None:
    packer, table = LAYOUTS["gptq"]
    source, exact = packed_source(tmp_path / "source", with_zeros_for_biases(packer), table)
    assert_exact(built(source, tmp_path / "out"), exact)
    plan = make_plan(open_checkpoint(str(source), HubOptions()), "source")
    assert "model.layers.*.mlp.up_proj.bias (layers 0-1): left out; mlx-lm's model has no place for it" in exceptions(
        plan
    )
    # Without a packed matrix beside it, a bias that has no place is an error.
    config, shapes = llama(layers=2)
    extra = shapes | {"model.layers.1.mlp.up_proj.bias": (128,)}
    with pytest.raises(SourceError, match=r"up_proj\.bias has no known role"):
        make_plan(open_checkpoint(str(write(tmp_path / "plain", config, extra)), HubOptions()), "source")


def mixed(few: Packer, many: Packer) -> Packer:
    """Every down projection by `many`, all else by `few`."""
    return lambda name, shape, draw: (many if "down_proj" in name else few)(name, shape, draw)


def two_groups(size: int) -> Table:
    def group(bits: int, *targets: str) -> Table:
        return {"weights": {"num_bits": bits, "group_size": size or None}, "targets": list(targets)}

    named = {"group_0": group(4, "Linear"), "group_1": group(8, r"re:.*\.down_proj$")}
    return {"quant_method": "compressed-tensors", "config_groups": named}


SEVERAL_WIDTHS: dict[str, tuple[Packer, Table]] = {
    "compressed, in groups": (mixed(packed.compressed(4, 32), packed.compressed(8, 32)), two_groups(32)),
    "gptq": (
        mixed(packed.gptq(4, 64), packed.gptq(8, 64)),
        {"quant_method": "gptq", "bits": 4, "group_size": 64, "dynamic": {"+:.*down.*": {"bits": 8}}},
    ),
    "gptq, other groups": (
        mixed(packed.gptq(4, 64), packed.gptq(2, 128)),
        {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "group_size": 64,
         "extra_config": {"model.layers.0.mlp.down_proj": {"bits": 2, "group_size": 128}}},
    ),
    "gptq that nothing declares": (packed.gptq(8, 64), {}),
    "awq that nothing declares": (packed.awq(64), {}),
}  # fmt: skip


@pytest.mark.parametrize("layout", SEVERAL_WIDTHS)
def test_single_modules_may_have_another_width(layout: str, tmp_path: Path) -> None:
    packer, table = SEVERAL_WIDTHS[layout]
    config, shapes = llama(layers=2, hidden=256, width=384)
    source, exact = write_packed(tmp_path / "source", config | {"quantization_config": table}, shapes, packer)
    assert_exact(built(source, tmp_path / "out"), exact)


def test_of_widths_that_all_fit_the_targets_name_one(tmp_path: Path) -> None:
    """A scale a row says nothing of how many columns there are."""
    packer = mixed(packed.compressed(4, 0), packed.compressed(8, 0))
    config, shapes = llama(layers=2, hidden=256, width=384)
    table = two_groups(0)
    for number, targets in enumerate((["Linear"], [r"re:.*(gate|up|q|k|v|o)_proj"])):
        table["config_groups"]["group_0"]["targets"] = targets
        folder = tmp_path / str(number)
        source, exact = write_packed(folder, config | {"quantization_config": table}, shapes, packer)
        assert_exact(built(source, tmp_path / f"out-{number}"), exact)
    table["config_groups"]["group_0"]["targets"] = ["re:.*"]
    source, _ = write_packed(tmp_path / "both", config | {"quantization_config": table}, shapes, packer)
    with pytest.raises(SourceError, match=r"does not say how .*down_proj.weight_packed is packed"):
        make_plan(open_checkpoint(str(source), HubOptions()), "source")


def test_a_pattern_that_would_take_for_ever_is_no_target(tmp_path: Path) -> None:
    table = two_groups(0)
    for group in table["config_groups"].values():
        group["targets"] = [r"re:(.*.*)*\d", r"re:" + ".*" * 30 + "x", "re:(("]
    config, shapes = llama(layers=2, hidden=256, width=384)
    source, _ = write_packed(tmp_path, config | {"quantization_config": table}, shapes, packed.compressed(4, 0))
    with pytest.raises(SourceError, match="does not say how"):
        make_plan(open_checkpoint(str(source), HubOptions()), "source")


@pytest.mark.parametrize(
    ("layout", "table"),
    [
        ("awq", {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"}),
        ("gptq", {"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "marlin"}),
    ],
)
def test_a_layout_for_one_kernel_is_refused_by_name(layout: str, table: Table, tmp_path: Path) -> None:
    source, _ = packed_source(tmp_path, LAYOUTS[layout][0], table)
    with pytest.raises(SourceError, match=r"for (gemv|marlin), which cannot be undone here"):
        make_plan(open_checkpoint(str(source), HubOptions()), "source")


@pytest.mark.parametrize("method", ["hqq", "torchao", "eetq"])
def test_what_is_left_of_a_packing_that_was_undone_is_ignored(method: str, tmp_path: Path) -> None:
    config, shapes = llama(layers=2)
    source = write(tmp_path / "source", config | {"quantization_config": {"quant_method": method}}, shapes)
    built(source, tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_groups_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    """MLX would read the memory behind the scales."""
    source, _ = packed_source(tmp_path / "source", *LAYOUTS["gptq"])
    stored, _ = packed.gptq(4, 64)("model.layers.1.mlp.up_proj.weight", (384, 256), np.random.default_rng(0))
    wrong = stored["model.layers.1.mlp.up_proj.g_idx"][1].tobytes()
    shard = source / "model-00001-of-00001.safetensors"
    raw = shard.read_bytes()
    at = raw.rindex(wrong)
    shard.write_bytes(raw[:at] + b"\xff\xff\x00\x00" + raw[at + 4 :])
    with pytest.raises(SourceError, match=r"g_idx names groups that .*scales does not have"):
        built(source, tmp_path / "out")
