"""Rounding to nearest, `mx.quantize`'s own: bit for bit what mlx_lm.convert produces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from quantize.folder.quant_spec import QuantSpec

if TYPE_CHECKING:
    import mlx.core as mx


def quantize_rows(rows: mx.array, spec: QuantSpec) -> Mapping[str, mx.array]:
    """(rows, columns) of any float dtype -> weight, scales and biases, not yet evaluated."""
    # Imported here so that code which only needs shapes starts without MLX.
    import mlx.core as mx

    weight, scales, biases = mx.quantize(rows, group_size=spec.group_size, bits=spec.bits, mode="affine")
    return {"weight": weight, "scales": scales, "biases": biases}
