"""Stacked experts multiplied expert by expert, on a CPU.

There MLX multiplies every row by its expert's matrix alone, and so reads that matrix anew for each: at the sizes of
Gemma 4 26B-A4B ten to twenty times slower than one product an expert (MLX 0.32). On a GPU MLX groups the rows itself.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.switch_layers import SwitchLinear

from quantize.forward.products import product
from quantize.forward.routing import by_expert

# Multiplications; below, the grouping costs more than it saves.
_LARGE = 2**26


class GroupedExperts(SwitchLinear):  # type: ignore[misc]
    """The same call with the same values. It evaluates `indices`."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        count, width, columns = self.weight.shape
        if indices.size * width * columns < _LARGE:
            ungrouped: mx.array = super().__call__(x, indices, sorted_indices)
            return ungrouped
        rows, experts = by_expert(x, indices)
        order = mx.argsort(experts)
        bounds = np.searchsorted(np.array(experts[order]), np.arange(count + 1)).tolist()
        rows = rows[order]
        mx.eval(rows)
        parts = [
            product(rows[start:stop], self.weight[expert].T)
            for expert, (start, stop) in enumerate(pairwise(bounds))
            if stop > start
        ]
        returned = mx.concatenate(parts)[mx.argsort(order)].reshape(*indices.shape, 1, width)
        return returned + mx.expand_dims(self.bias[indices], -2) if "bias" in self else returned


def group_experts(layer: Any) -> None:
    """Every plain module of stacked experts in `layer`; where there is a GPU, none."""
    if mx.default_device() != mx.Device(mx.cpu):
        return
    for _, module in layer.named_modules():
        if type(module) is SwitchLinear:
            # Not through nn.Module's own __setattr__, which keeps a module's parameters.
            object.__setattr__(module, "__class__", GroupedExperts)
