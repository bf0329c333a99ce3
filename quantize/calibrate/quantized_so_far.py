"""The stream of the quantized model: what is outside of the layers as the builder rounds it, each layer as it is read.

Layers are quantized in place while they are calibrated, so only the embedding needs another value than the source's.
It is rounded by the rows that are looked up: a whole table of 262,144 tokens would be the most that memory ever held.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from quantize.folder.quant_spec import QuantSpec
from quantize.forward.models import LazyModel
from quantize.plan.plan import Plan
from quantize.source.folder import DTYPES


class QuantizedSoFar:
    """A LazyModel whose head is not rounded where it is the embedding: a calibration does not run it."""

    def __init__(self, model: LazyModel, plan: Plan) -> None:
        self._model = model
        self._outside = [output for output in plan.tensors if output.layer is None and output.spec is not None]
        self.label, self.identity = model.label, f"{model.identity} quantized"

    def make(self, layer: int | None) -> Any:
        model = self._model.make(layer)
        if layer is None:
            modules = dict(model.named_modules())
            for output in self._outside:
                assert output.spec is not None
                module, dtype = modules[output.path], DTYPES[output.dtype]
                if type(module) is nn.Embedding:
                    rows = _RoundedRows(module.weight, output.spec, dtype)
                    model.update_modules(tree_unflatten([(output.path, rows)]))
                else:
                    module.weight = _rounded(module.weight, output.spec, dtype)
        return model


class _RoundedRows(nn.Embedding):  # type: ignore[misc]
    def __init__(self, weight: mx.array, spec: QuantSpec, dtype: mx.Dtype) -> None:
        super().__init__(1, 1)
        self.weight = weight
        self._spec, self._dtype = spec, dtype

    def __call__(self, x: mx.array) -> mx.array:
        return _rounded(self.weight[x], self._spec, self._dtype)


def _rounded(values: mx.array, spec: QuantSpec, dtype: mx.Dtype) -> mx.array:
    """`values` (..., columns) as a quantized tensor of `dtype` holds them, in their own dtype."""
    kept, scales, biases = mx.quantize(values.astype(dtype), spec.group_size, spec.bits)
    scales, biases = scales.astype(values.dtype), biases.astype(values.dtype)
    return mx.dequantize(kept, scales, biases, spec.group_size, spec.bits)
