"""The stream of the quantized model: what is outside of the layers as the builder rounds it, each layer as it is read.

Layers are quantized in place while they are calibrated, so only the embedding needs another value than the source's.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from quantize.forward.models import LazyModel
from quantize.plan.plan import Plan

_DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}


class QuantizedSoFar:
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
                module, spec = modules[output.path], output.spec
                stored = mx.quantize(module.weight.astype(_DTYPES[output.dtype]), spec.group_size, spec.bits)
                kept, scales, biases = stored
                dtype = module.weight.dtype
                module.weight = mx.dequantize(
                    kept, scales.astype(dtype), biases.astype(dtype), spec.group_size, spec.bits
                )
        return model
