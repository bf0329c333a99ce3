"""Quantized matrices multiplied as plain ones of the same values, on a CPU.

MLX's CPU backend multiplies packed weights code by code; with gradients, fourteen times slower than plain products are
through OpenBLAS (MLX 0.32, 1536 x 576 and 512 tokens). Values and gradients are the same, to rounding in float32.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn


class _Linear(nn.QuantizedLinear):  # type: ignore[misc]
    def __call__(self, x: mx.array) -> mx.array:
        returned = x @ _values(self).T
        return returned + self.bias if "bias" in self else returned


class _Embedding(nn.QuantizedEmbedding):  # type: ignore[misc]
    def as_linear(self, x: mx.array) -> mx.array:
        return x @ _values(self).T


def by_plain_products(model: Any) -> None:
    """Every quantized matrix of `model`; where there is a GPU, none."""
    if mx.default_device() != mx.Device(mx.cpu):
        return
    for _, module in model.named_modules():
        for quantized, plain in ((nn.QuantizedLinear, _Linear), (nn.QuantizedEmbedding, _Embedding)):
            if type(module) is quantized:
                # Not through nn.Module's own __setattr__, which keeps a module's parameters.
                object.__setattr__(module, "__class__", plain)


def _values(module: Any) -> mx.array:
    """(rows, columns), differentiable in scales and biases: what MLX's `dequantize` is not."""
    ones = mx.ones(module.scales.shape)
    codes = mx.dequantize(module.weight, ones, mx.zeros_like(ones), module.group_size, module.bits)
    grouped = codes.reshape(*module.scales.shape, module.group_size)
    values: mx.array = grouped * module.scales[..., None] + module.biases[..., None]
    return values.reshape(codes.shape)
