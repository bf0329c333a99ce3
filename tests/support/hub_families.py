"""Small checkpoints of every family in the names and layouts of the Hub: name -> config.json and the tensors' shapes.

Each is made from mlx-lm's own model class, whose tensors are renamed back to what is published: experts apart or fused,
convolutions the other way round, and with the tensors that a text model does not need.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from tests.support.checkpoints import Shapes, gemma4, qwen3_moe, write
from tests.support.families import FAMILIES
from tests.support.tiny_model import END_ID, VOCAB_SIZE

Shape = tuple[int, ...]
Tensors = Iterator[tuple[str, Shape]]
LAYERS = 6
_COMMON = {
    "hidden_size": 64, "num_hidden_layers": LAYERS, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 2048, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "eos_token_id": END_ID,
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
    "sliding_window": 64,
}  # fmt: skip
_KINDS = ["sliding_attention", "full_attention"] * (LAYERS // 2)
_LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4, "full_attention_interval": 2, "head_dim": 32, "partial_rotary_factor": 0.5,
    "rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5, "type": "default"},
}  # fmt: skip
_GEMMA3 = {"query_pre_attn_scalar": 32, "sliding_window_pattern": 3, "tie_word_embeddings": True}
_MINIMAX = {"shared_intermediate_size": 0, "rotary_dim": 8, "intermediate_size": 64}
_LLAMA4 = {
    "intermediate_size_mlp": 128, "interleave_moe_layer_step": 2, "no_rope_layers": [1, 0] * (LAYERS // 2),
    "use_qk_norm": True, "attention_chunk_size": 64, "attention_bias": False, "attn_temperature_tuning": True,
    "floor_scale": 8192, "attn_scale": 0.1, "rope_scaling": None,
}  # fmt: skip
_DEEPSEEK = {
    "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1,
    "topk_group": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": True, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 32, "num_key_value_heads": 4, "rope_scaling": None,
    "attention_bias": False,
}  # fmt: skip
# What a family's config has beside the common numbers.
_OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "gemma3_text": _GEMMA3,
    "gemma3": _GEMMA3,
    "phi3": {},
    "mixtral": {"intermediate_size": 64},
    "minimax": _MINIMAX,
    "minimax_m2": _MINIMAX,
    "qwen2_moe": FAMILIES["qwen2_moe"],
    "olmoe": {"intermediate_size": 64},
    "phimoe": {"intermediate_size": 64, "rope_scaling": FAMILIES["phimoe"]["rope_scaling"]},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1,
                     "use_bias": False, "tie_word_embeddings": True},
    "granitemoe": FAMILIES["granitemoe"] | {"intermediate_size": 64, "tie_word_embeddings": True},
    "gpt_oss": FAMILIES["gpt_oss"] | {"layer_types": _KINDS, "intermediate_size": 64,
                                      "quantization_config": {"quant_method": "mxfp4"}},
    "glm4_moe": FAMILIES["glm4_moe"],
    "deepseek_v3": _DEEPSEEK,
    "kimi_k25": _DEEPSEEK,
    "llama4_text": _LLAMA4 | {"tie_word_embeddings": True},
    "llama4": _LLAMA4 | {"num_experts_per_tok": 1},
    "lfm2_moe": FAMILIES["lfm2_moe"] | {"layer_types": ["conv", "full_attention"] * (LAYERS // 2),
                                        "tie_word_embeddings": True},
    "smollm3": {"tie_word_embeddings": True},
    "ministral3": FAMILIES["ministral3"] | {"layer_types": _KINDS},
    "mistral3": FAMILIES["ministral3"] | {"layer_types": _KINDS},
    "qwen3_next": FAMILIES["qwen3_next"] | _LINEAR | {"shared_expert_intermediate_size": 64},
    "qwen3_5": _LINEAR | {"num_experts": 0, "num_experts_per_tok": 0},
    "qwen3_5_moe": _LINEAR | {"shared_expert_intermediate_size": 64},
    "gemma3n": FAMILIES["gemma3n"] | {
        "layer_types": _KINDS, "activation_sparsity_pattern": [0.0] * LAYERS, "hidden_size_per_layer_input": 32,
        "laurel_rank": 32, "vocab_size_per_layer_input": VOCAB_SIZE, "tie_word_embeddings": True,
    },
}  # fmt: skip
# Their numbers stand in `text_config`, of this type.
_NESTED = {
    "gemma3": "gemma3_text", "llama4": "llama4_text", "mistral3": "ministral3", "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text", "gemma3n": "gemma3n_text", "kimi_k25": "kimi_k2",
}  # fmt: skip
_PROJECTION = r"(gate|up|down)_proj\.weight"


def _single(below: str, names: Mapping[str, str] | None = None) -> Callable[[str, Shape], Tensors]:
    """Experts one by one, as `names` has them."""

    def apart(name: str, shape: Shape) -> Tensors:
        match = re.fullmatch(rf"(.*\.{below})\.switch_mlp\.{_PROJECTION}", name)
        if match is None:
            yield name, shape
            return
        single = names[match[2]] if names else f"{match[2]}_proj"
        for expert in range(shape[0]):
            yield f"{match[1]}.experts.{expert}.{single}.weight", shape[1:]

    return apart


_W123 = {"gate": "w1", "down": "w2", "up": "w3"}


def _same(name: str, shape: Shape) -> Tensors:
    yield name, shape


def _granite(name: str, shape: Shape) -> Tensors:
    if ".gate_proj" in name:
        yield name.replace("switch_mlp.gate_proj", "input_linear"), (shape[0], 2 * shape[1], shape[2])
    elif ".up_proj" not in name:
        yield name.replace("switch_mlp.down_proj", "output_linear"), shape


def _gpt_oss(name: str, shape: Shape) -> Tensors:
    """Rows of gate and up take turns; codes in groups of 32, two in a byte."""
    if ".experts." not in name:
        yield name, shape
        return
    path, kind = name.rsplit(".", 1)
    if path.endswith("up_proj"):
        return
    if path.endswith("gate_proj"):
        path, shape = path.replace("gate_proj", "gate_up_proj"), (shape[0], 2 * shape[1], *shape[2:])
    if kind == "bias":
        yield f"{path}_bias", shape
    else:
        yield f"{path}_blocks", (*shape[:2], shape[2] // 32, 16)
        yield f"{path}_scales", (*shape[:2], shape[2] // 32)


def _llama4(name: str, shape: Shape) -> Tensors:
    """Experts are stored as (inputs, outputs)."""
    if re.search(r"\.experts\.gate_proj", name):
        yield name.replace("gate_proj.weight", "gate_up_proj"), (shape[0], shape[2], 2 * shape[1])
    elif re.search(r"\.experts\.down_proj", name):
        yield name.removesuffix(".weight"), (shape[0], shape[2], shape[1])
    elif not re.search(r"\.experts\.up_proj", name):
        yield name, shape


def _deepseek(name: str, shape: Shape) -> Tensors:
    if name.endswith("embed_q.weight"):
        heads, rank, nope = shape
        yield name.replace("embed_q", "kv_b_proj"), (heads * (nope + 32), rank)
    elif not name.endswith("unembed_out.weight"):
        yield from _single("mlp")(name, shape)


def _lfm2(name: str, shape: Shape) -> Tensors:
    for named, shaped in _single("feed_forward", _W123)(name, shape):
        dense = re.sub(r"feed_forward\.(gate|up|down)_proj", lambda m: f"feed_forward.{_W123[m[1]]}", named)
        yield dense, (shaped[0], 1, shaped[1]) if "conv.conv" in named else shaped


def _qwen3_next(name: str, shape: Shape) -> Tensors:
    for named, shaped in _single("mlp")(name, shape):
        yield named, (shaped[0], 1, shaped[1]) if "conv1d" in named else shaped


def _qwen3_5(name: str, shape: Shape) -> Tensors:
    name = name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head")
    if ".switch_mlp.gate_proj" in name:
        fused = name.replace("switch_mlp.gate_proj.weight", "experts.gate_up_proj")
        yield fused, (shape[0], 2 * shape[1], shape[2])
    elif ".switch_mlp.down_proj" in name:
        yield name.replace("switch_mlp.down_proj.weight", "experts.down_proj"), shape
    elif ".switch_mlp." not in name:
        yield name, (shape[0], 1, shape[1]) if "conv1d" in name else shape


_NAMES: dict[str, Callable[[str, Shape], Tensors]] = {
    "mixtral": _single("block_sparse_moe", _W123),
    "minimax": _single("block_sparse_moe", _W123),
    "minimax_m2": _single("block_sparse_moe", _W123),
    "phimoe": _single("block_sparse_moe", _W123),
    "qwen2_moe": _single("mlp"),
    "olmoe": _single("mlp"),
    "ernie4_5_moe": _single("mlp"),
    "glm4_moe": _single("mlp"),
    "deepseek_v3": _deepseek,
    "kimi_k25": _deepseek,
    "granitemoe": _granite,
    "gpt_oss": _gpt_oss,
    "llama4": _llama4,
    "lfm2_moe": _lfm2,
    "qwen3_next": _qwen3_next,
    "qwen3_5": _qwen3_5,
    "qwen3_5_moe": _qwen3_5,
}
# Of towers and of predicting several tokens at once; mlx-lm drops them.
_EXTRA: dict[str, Shapes] = {
    "gemma3": {"vision_tower.vision_model.embeddings.patch_embedding.bias": (32,)},
    "gemma3n": {"model.vision_tower.timm_model.conv_stem.bn.weight": (32,), "model.embed_audio.norm.weight": (8,)},
    "llama4": {"vision_model.class_embedding": (32,), "multi_modal_projector.linear_1.weight": (64, 32)},
    "kimi_k25": {"vision_tower.patch_embed.proj.bias": (32,), "mm_projector.pre_norm.weight": (32,)},
    "mistral3": {"vision_tower.ln_pre.weight": (32,), "multi_modal_projector.norm.weight": (32,)},
    "qwen3_next": {"mtp.fc.weight": (64, 128), "mtp.norm.weight": (64,)},
    "qwen3_5": {"model.visual.pos_embed.weight": (8, 32), "mtp.fc.weight": (64, 128)},
    "qwen3_5_moe": {"model.visual.pos_embed.weight": (8, 32), "mtp.fc.weight": (64, 128)},
    "ernie4_5_moe": {
        "model.mtp_block.0.norm.weight": (64,),
        **{f"model.layers.{layer}.mlp.moe_statics.e_score_correction_bias": (1, 4) for layer in range(1, LAYERS)},
    },
    "glm4_moe": {f"model.layers.{LAYERS}.eh_proj.weight": (64, 128)},
    "deepseek_v3": {"model.layers.61.eh_proj.weight": (64, 128), "model.layers.0.self_attn.rotary_emb.inv_freq": (8,)},
}  # fmt: skip
HUB_FAMILIES = tuple(sorted((*_OWN, "gemma4", "gemma4_text", "qwen3_moe")))


def hub_checkpoint(family: str) -> tuple[dict[str, Any], Shapes]:
    """Config and shapes."""
    if family in ("gemma4", "qwen3_moe"):
        return gemma4() if family == "gemma4" else qwen3_moe()
    if family == "gemma4_text":
        config, shapes = gemma4()
        kept = {name.replace("language_model.", ""): shape for name, shape in shapes.items() if "vision" not in name}
        return config["text_config"], kept
    numbers = _COMMON | _OWN[family]
    if family in _NESTED:
        inner = {key: value for key, value in numbers.items() if key != "tie_word_embeddings" or value}
        config = {"model_type": family, "text_config": inner | {"model_type": _NESTED[family]}, "vision_config": {}}
        config["tie_word_embeddings"] = numbers["tie_word_embeddings"]
    else:
        config = {"model_type": family} | numbers
    return on_the_hub(config)


def on_the_hub(config: dict[str, Any]) -> tuple[dict[str, Any], Shapes]:
    """The checkpoint that mlx-lm's model of `config` would be made from."""
    family = config["model_type"]
    model_class, arguments = _get_classes(json.loads(json.dumps(config)))
    model = model_class(arguments.from_dict(json.loads(json.dumps(config))))
    rename = _NAMES.get(family, _same)
    shapes: Shapes = {}
    for name, array in tree_flatten(model.parameters()):
        shapes |= dict(rename(name, array.shape))
    if family in ("gemma3", "gemma3_text"):
        shapes = {name: shape for name, shape in shapes.items() if "lm_head" not in name}
    return config, shapes | _EXTRA.get(family, {})


def write_hub_family(folder: Path, family: str) -> Path:
    return write(folder, *hub_checkpoint(family))
