"""GPTQ on fixed grids: each column is rounded, and the columns to its right make up for its error."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

from quantize.calibrate.grids import Quantized, nearest
from quantize.calibrate.sweep import sweep


def gptq(target: mx.array, root: mx.array, grids: Quantized) -> Quantized:
    """`grids` with codes chosen for `target` by GPTQ in plain column order.

    target: (E, rows, columns) float32; root: U (E, columns, columns) of the damped Hessian, see `inverse_root`. With
    the identity for U this is rounding on those grids.
    """
    spec = grids.spec

    def step(column: int, values: mx.array) -> tuple[mx.array, mx.array]:
        group = column // spec.group_size
        scale, bias = grids.scales[..., group, None], grids.biases[..., group, None]
        codes = nearest(values, scale, bias, spec)
        return codes, (values - (scale * codes + bias)) / root[:, column, column, None, None]

    return replace(grids, codes=sweep(target, root, 1, step))
