"""Rounding to nearest, `mx.quantize`'s own: what mlx_lm.convert would give, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from quantize.folder.quant_spec import QuantSpec

if TYPE_CHECKING:
    import mlx.core as mx


def quantize_rows(rows: mx.array, width: QuantSpec) -> Mapping[str, mx.array]:
    """(rows, columns) of any float dtype -> weight, scales and biases, not yet evaluated."""
    # Here, so that what only asks for shapes starts without MLX.
    import mlx.core as mx

    weight, scales, biases = mx.quantize(rows, group_size=width.group_size, bits=width.bits, mode="affine")
    return {"weight": weight, "scales": scales, "biases": biases}
