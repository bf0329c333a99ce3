"""A model whose matrices are rounded to nearest as a build would, each to a width of its own, without building it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from quantize.forward.models import LazyModel

GROUP = 64


class Rounded:
    """`source` in float32, its quantizable modules but the router at `bits(path)`; None leaves one as it is."""

    label = identity = "rounded"

    def __init__(self, source: LazyModel, bits: Callable[[str], int | None]) -> None:
        self._source = source
        self._bits = bits

    def make(self, layer: int | None) -> Any:
        model = self._source.make(layer)
        for path, module in model.named_modules():
            if hasattr(module, "to_quantized") and not path.endswith("router.proj") and (bits := self._bits(path)):
                codes, scales, biases = mx.quantize(module.weight.astype(mx.bfloat16), GROUP, bits)
                scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
                module.weight = mx.dequantize(codes, scales, biases, GROUP, bits)
        return model
