"""Every family that can be built: what comes of a checkpoint in the Hub's layout is what mlx-lm itself makes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, load_model

from quantize.build.build import build
from quantize.folder.verify import verify
from quantize.plan.plan import make_plan
from quantize.source.checkpoint import HubOptions
from quantize.source.families import FAMILIES
from quantize.source.sources import open_checkpoint
from tests.support.checkpoints import Shapes, gemma4, qwen3_moe, write

_COMMON = {
    "hidden_size": 64, "num_hidden_layers": 5, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 448,
    "max_position_embeddings": 2048, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
_GEMMA3 = {
    "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64, "sliding_window_pattern": 3,
    "tie_word_embeddings": True,
}  # fmt: skip
_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
_MINIMAX = {"shared_intermediate_size": 0, "rotary_dim": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
    "gemma3_text": _GEMMA3,
    "gemma3": {"text_config": {**_COMMON, **_GEMMA3, "model_type": "gemma3_text"}, "vision_config": {}},
    "phi3": {},
    "mixtral": _MOE,
    "minimax": _MOE | _MINIMAX,
    "minimax_m2": _MOE | _MINIMAX,
}
# The small Gemma 4 models: inputs for each layer, and last layers that use the keys of earlier ones.
_GEMMA4_SMALL = {
    "head_dim": 32, "global_head_dim": 64, "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 448,
    "num_kv_shared_layers": 2, "sliding_window_pattern": 3, "sliding_window": 64, "tie_word_embeddings": True,
}  # fmt: skip
# mlx-lm's stacked matrices, and the names of the single ones on the Hub.
_STACKED = re.compile(r"(.*block_sparse_moe)\.switch_mlp\.(gate|down|up)_proj\.weight")
_SINGLE = {"gate": "w1", "down": "w2", "up": "w3"}


def checkpoint(model_type: str) -> tuple[dict[str, Any], Shapes]:
    """Config and shapes as the Hub has them, from mlx-lm's own model class."""
    if model_type in ("gemma4", "qwen3_moe"):
        return gemma4() if model_type == "gemma4" else qwen3_moe()
    if model_type == "gemma4_text":
        config, shapes = gemma4()
        kept = {name.replace("language_model.", ""): shape for name, shape in shapes.items() if "vision" not in name}
        return config["text_config"], kept
    return from_mlx_lm({"model_type": model_type} | _COMMON | CONFIGS[model_type])


def from_mlx_lm(config: dict[str, Any]) -> tuple[dict[str, Any], Shapes]:
    model_type = config["model_type"]
    model_class, arguments = _get_classes(json.loads(json.dumps(config)))
    model = model_class(arguments.from_dict(json.loads(json.dumps(config))))
    shapes = {}
    for name, array in tree_flatten(model.parameters()):
        shapes |= dict(_on_the_hub(name, array.shape))
    if "gemma3" in model_type:
        shapes = {name: shape for name, shape in shapes.items() if "lm_head" not in name}
    if model_type == "gemma3":
        shapes["vision_tower.vision_model.embeddings.patch_embedding.bias"] = (32,)
    return config, shapes


def _on_the_hub(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    if match := _STACKED.fullmatch(name):
        for expert in range(shape[0]):
            yield f"{match[1]}.experts.{expert}.{_SINGLE[match[2]]}.weight", shape[1:]
    else:
        yield name, shape


@pytest.mark.parametrize("model_type", FAMILIES)
def test_it_is_what_mlx_lm_makes_of_the_source(model_type: str, tmp_path: Path) -> None:
    same_as_mlx_lm(write(tmp_path / "source", *checkpoint(model_type)), tmp_path)


def test_keys_that_a_small_gemma_4_never_uses_are_left_out(tmp_path: Path) -> None:
    config, shapes = from_mlx_lm({"model_type": "gemma4_text"} | _COMMON | _GEMMA4_SMALL)
    unused = {
        name.replace("layers.0.", "layers.4."): shape for name, shape in shapes.items() if "0.self_attn.k" in name
    }
    assert len(unused) == 2
    source = write(tmp_path / "source", config, shapes | unused)
    assert make_plan(open_checkpoint(str(source), HubOptions()), "config-i").dropped == list(unused)
    same_as_mlx_lm(source, tmp_path)


def same_as_mlx_lm(source: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(str(source), HubOptions())
    build(opened, make_plan(opened, "source"), tmp_path / "kept")
    build(opened, make_plan(opened, "uniform-8"), tmp_path / "quantized")
    theirs = dict(tree_flatten(load_model(source, strict=False)[0].parameters()))
    ours = dict(tree_flatten(load_model(tmp_path / "kept")[0].parameters()))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert mx.array_equal(ours[name], array), name
    assert verify(tmp_path / "quantized") == []
    model, _ = load_model(tmp_path / "quantized")
    kept = {path for path, module in model.named_modules() if hasattr(module, "to_quantized")}
    # Only the routers.
    assert all(path.endswith(("router.proj", "mlp.gate", "block_sparse_moe.gate")) for path in kept)
    assert mx.isfinite(model(mx.array([[5, 9, 40]]))).all()
