"""The role of a tensor in a model: assigned by what its module is and where it stands, quantized by what a policy says.

The names are those of mlx-lm's module tree. A matrix that no rule matches has no role, and then there is no plan.
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
_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.")
_ROOT = re.compile(r"(?:(?:language_model|model)\.)*")


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor stands in."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def role_of(name: str, shape: tuple[int, ...], kind: str) -> TensorRole | None:
    """By a tensor's name in mlx-lm, its shape, and the class of the module that owns it; None if it is unknown."""
    path, _, leaf = name.rpartition(".")
    # Experts' biases form a matrix, one row each.
    if len(shape) < 2 or leaf == "bias":
        return "other"
    if kind == "SwitchLinear":
        return _EXPERTS.get(path.rpartition(".")[2])
    if kind in _BY_KIND:
        return _BY_KIND[kind]
    tail = path[(_LAYER.match(path) or _ROOT.match(path)).end() :]  # type: ignore[union-attr]
    return next((role for role, pattern in _BY_PATH if re.fullmatch(pattern, tail)), None)
