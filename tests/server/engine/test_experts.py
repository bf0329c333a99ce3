"""Experts whose gate and up are one matrix: the same answers bit for bit, and only where both are quantized alike."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import gemma4_text, qwen3_moe
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import SwitchGLU

from server.engine.experts import FusedExperts, fuse

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "vocab_size": 128,
    "num_experts": 8,
    "moe_intermediate_size": 64,
    "max_position_embeddings": 512,
}


def qwen(dense: tuple[int, ...] = ()) -> Any:
    own = {"num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": list(dense), "rope_theta": 1e4}
    config = SIZES | own | {"model_type": "qwen3_moe", "tie_word_embeddings": True, "norm_topk_prob": True}
    return qwen3_moe.Model(qwen3_moe.ModelArgs.from_dict(config))


def gemma() -> Any:
    own = {"top_k_experts": 2, "enable_moe_block": True, "global_head_dim": 32, "num_kv_shared_layers": 0}
    own |= {
        "hidden_size_per_layer_input": 0,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    config = SIZES | own | {"model_type": "gemma4_text"}
    return gemma4_text.Model(gemma4_text.ModelArgs.from_dict(config))


def quantized(model: Any, *, gate_bits: int = 4, mode: str = "affine") -> Any:
    def bits(path: str, module: Any) -> Any:
        if not hasattr(module, "to_quantized"):
            return False
        return {"bits": gate_bits if "gate_proj" in path else 4, "group_size": 32, "mode": mode}

    mx.random.seed(3)
    nn.quantize(model, class_predicate=bits)
    mx.eval(model.parameters())
    return model


def answers(model: Any) -> list[mx.array]:
    """A prompt whose tokens are sorted by expert, and one token that is not."""
    layers = make_prompt_cache(model)
    made = [model(mx.array([list(range(60))]), cache=layers), model(mx.array([[7]]), cache=layers)]
    mx.eval(made)
    return made


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
@pytest.mark.parametrize("make", [qwen, gemma])
def test_the_answers_are_the_same_bit_for_bit_and_the_weights_as_many(make: Any, mode: str) -> None:
    model = quantized(make(), mode=mode)
    before, size = answers(model), sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    assert fuse(model) == 2
    assert sum(isinstance(module, FusedExperts) for module in model.modules()) == 2
    assert not any(isinstance(module, SwitchGLU) for module in model.modules())
    for was, made in zip(before, answers(model), strict=True):
        assert mx.array_equal(was, made)
    assert sum(value.nbytes for _, value in tree_flatten(model.parameters())) == size
    assert fuse(model) == 0


def test_experts_of_different_widths_or_not_quantized_stay_as_they_are() -> None:
    assert fuse(quantized(qwen(), gate_bits=2)) == 0
    assert fuse(qwen()) == 0


def test_layers_without_experts_are_left_alone() -> None:
    model = quantized(qwen(dense=(0,)))
    before = answers(model)
    assert fuse(model) == 1
    assert all(mx.array_equal(was, made) for was, made in zip(before, answers(model), strict=True))


def test_experts_of_a_class_of_their_own_stay_as_they_are() -> None:
    class Other(SwitchGLU):  # type: ignore[misc]
        pass

    model = quantized(qwen())
    for layer in model.layers:
        layer.mlp.switch_mlp.__class__ = Other
    assert fuse(model) == 0
