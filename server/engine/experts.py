"""A mixture's experts with gate and up as one matrix: one pass over the tokens less. Runs in the engine process.

The model's files stay as they are; what is fused is in memory only. Every row of the product is computed as before, so
the answers are the same bit for bit.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU

from server.engine import compat


class FusedExperts(nn.Module):  # type: ignore[misc]
    """In place of a `SwitchGLU` whose gate and up are quantized alike; takes their memory over."""

    def __init__(self, experts: Any) -> None:
        super().__init__()
        up, gate = experts.up_proj, experts.gate_proj
        for name in ("weight", "scales", "biases", "bias"):
            if up.get(name) is not None:
                up[name] = mx.concatenate([up[name], gate[name]], axis=1)
                # One layer's is twice in memory at a time.
                mx.eval(up[name])
                del gate[name]
        self.up_gate_proj = up
        self.down_proj = experts.down_proj
        self.activation = experts.activation

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """(..., width) and (..., experts of each token) to (..., experts of each token, width)."""
        x, indices, restore = compat.sorted_by_expert(x, indices)
        is_sorted = restore is not None
        up, gate = mx.split(self.up_gate_proj(x, indices, sorted_indices=is_sorted), 2, axis=-1)
        made: mx.array = self.down_proj(self.activation(up, gate), indices, sorted_indices=is_sorted)
        return (made if restore is None else restore(made)).squeeze(-2)


def fuse(model: nn.Module) -> int:
    """Fuse all mixtures of `model` that can be; returns how many."""
    found = [(name, module) for name, module in model.named_modules() if _can_be_fused(module)]
    for name, module in found:
        model.update_modules(tree_unflatten([(name, FusedExperts(module))]))
        # What was joined.
        mx.clear_cache()
    return len(found)


def _can_be_fused(module: nn.Module) -> bool:
    # A subclass may compute something else.
    if type(module) is not SwitchGLU:
        return False
    up, gate = module.up_proj, module.gate_proj
    if type(up) is not QuantizedSwitchLinear or type(gate) is not QuantizedSwitchLinear:
        return False
    return _kind(up) == _kind(gate) and up.get("global_scale") is None and gate.get("global_scale") is None


def _kind(linear: Any) -> tuple[Any, ...]:
    arrays = {name: (value.shape, value.dtype) for name, value in linear.items() if isinstance(value, mx.array)}
    return linear.bits, linear.group_size, linear.mode, arrays
