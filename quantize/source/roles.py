"""The role of a tensor in a model. Families assign roles, policies quantize by them."""

from __future__ import annotations

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
    "other",
]
ROLES: tuple[TensorRole, ...] = get_args(TensorRole)
# Matrices; `other` is norms, scalars and biases, which are never quantized.
QUANTIZABLE: tuple[TensorRole, ...] = ROLES[:-1]
