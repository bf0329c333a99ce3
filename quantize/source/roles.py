"""What a tensor of a model is for. Policies speak of roles, families give them."""

from __future__ import annotations

from typing import Literal, get_args

Role = Literal[
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
ROLES: tuple[Role, ...] = get_args(Role)
# Matrices that can be quantized; `other` is norms, scalars and biases, which never are.
QUANTIZABLE: tuple[Role, ...] = ROLES[:-1]
