"""The role of a tensor in a model: assigned by what its module is and where it stands, quantized by what a policy says.

The names are those of mlx-lm's module tree. What the rules for the families do not name has its role by the words in
its path, in any architecture; what mlx-lm cannot quantize is never quantized.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

TensorRole = Literal[
    "embedding",
    "lm_head",
    "attention",
    "expert_gate_up",
    "expert_down",
    "mlp_gate_up",
    "mlp_down",
    "router",
    "per_layer_input",
    "residual",
    "other",
]
ROLES: tuple[TensorRole, ...] = get_args(TensorRole)
# Matrices; `other` is norms, scalars, biases and convolution kernels, which are never quantized.
QUANTIZABLE: tuple[TensorRole, ...] = ROLES[:-1]

# By the class of the module that owns the tensor.
_BY_KIND: dict[str, TensorRole] = {"Embedding": "embedding", "Conv1d": "other"}
_MLP = r"(?:mlp|feed_forward)(?:\.shared_experts?)?"
# By the path of that module, below its layer.
_BY_PATH: tuple[tuple[TensorRole, str], ...] = (
    ("lm_head", r"lm_head"),
    ("attention", r"self_attn\.(?:[qkvo]|qkv|out|q_a|q_b)_proj"),
    # Multi-head latent attention: keys and values from one low-rank vector.
    ("attention", r"self_attn\.(?:kv_a_proj_with_mqa|embed_q|unembed_out)"),
    # What stands in the place of attention in some layers: gated delta rules, short convolutions.
    ("attention", r"linear_attn\.(?:in_proj_(?:qkvz|qkv|ba|z|a|b)|out_proj)|conv\.(?:in|out)_proj"),
    ("mlp_gate_up", rf"{_MLP}\.(?:gate|up|gate_up)_proj|feed_forward\.w[13]"),
    ("mlp_down", rf"{_MLP}\.down_proj|feed_forward\.w2"),
    ("router", r"(?:mlp|block_sparse_moe|feed_forward)\.(?:gate|router|router\.layer)|router\.proj"),
    # One row: how much of the expert that every token passes.
    ("router", r"mlp\.shared_expert_gate"),
    ("per_layer_input", r"per_layer_(?:input_gate|projection|model_projection)"),
    # Gemma 3n's residual stream is several: AltUp between them, LAuReL beside the blocks. A few coefficients mix them.
    ("residual", r"laurel\.linear_(?:left|right)|altup_(?:unembed_)?projections\.\d+"),
    ("router", r"altup\.modality_router"),
    ("other", r"altup\.(?:correction|prediction)_coefs"),
)
_EXPERTS: dict[str, TensorRole] = {
    "gate_proj": "expert_gate_up",
    "up_proj": "expert_gate_up",
    "down_proj": "expert_down",
}
_LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)\.")
_ROOT = re.compile(r"(?:(?:language_model|model|transformer)\.)*")
# What no rule above names, by the words in its path.
_HEADS = re.compile(r"embed_out|output|ff_out|lm_head\.linear")
_ROUTER = re.compile(r"(?:.*\.)?(?:mlp|moe|ffn|feed_forward)\.(?:(?:gate|router)(?:\.\w+)?|coefficient)")
_MIXER = re.compile(r"att|mamba|temporal|mixer(?!\.(?:\w+\.)*(?:up|down|gate)_proj|\.switch_mlp)")
_SINGLE_EXPERT = re.compile(r"(?:.*\.)?experts\.\d+\..*")
_DOWN = re.compile(
    r"down_proj|w2|c_proj|dense_4h_to_h|fc2|fc_out|o_proj|out_proj|output_linear|ff_out|\w+_resid|proj_2|value"
)


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor stands in."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def role_of(name: str, shape: tuple[int, ...], kind: str, *, quantizable: bool) -> TensorRole:
    """By a tensor's name in mlx-lm, its shape, and its module: the class, and whether mlx-lm can quantize it."""
    path, _, leaf = name.rpartition(".")
    # Experts' biases form a matrix, one row each.
    if len(shape) < 2 or leaf == "bias":
        return "other"
    if kind in _BY_KIND:
        return _BY_KIND[kind]
    match = _LAYER.match(path + ".") or _ROOT.match(path)
    tail = path[match.end() :] if match else path
    if kind == "SwitchLinear" and (role := _EXPERTS.get(path.rpartition(".")[2])) and not _MIXER.search(tail):
        return role
    if role := next((role for role, pattern in _BY_PATH if re.fullmatch(pattern, tail)), None):
        return role
    if leaf != "weight" or not quantizable:
        return "other"
    return _by_words(tail, kind, in_layer=layer_of(name) is not None)


def _by_words(tail: str, kind: str, *, in_layer: bool) -> TensorRole:
    if not in_layer:
        return "lm_head" if _HEADS.fullmatch(tail) else "residual"
    if _ROUTER.fullmatch(tail):
        return "router"
    if _MIXER.search(tail):
        return "attention"
    is_down = _DOWN.fullmatch(tail.rpartition(".")[2]) is not None
    if kind == "SwitchLinear" or _SINGLE_EXPERT.fullmatch(tail):
        return "expert_down" if is_down else "expert_gate_up"
    return "mlp_down" if is_down else "mlp_gate_up"
