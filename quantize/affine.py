"""MLX's affine quantization of rows, and what it occupies.

weight: uint32, `bits` per element packed little-endian, (rows, columns * bits / 32); scales and biases in the dtype of
the source, (rows, columns / group_size). An element is scale * q + bias. Rounding to nearest, `mx.quantize`'s own: what
mlx_lm.convert would give, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from quantize.policy import GROUP_SIZES, Width

if TYPE_CHECKING:
    import mlx.core as mx


def fitting_width(wanted: Width, columns: int) -> Width | None:
    """`wanted`, or with the largest smaller group size that divides the columns; None when none does."""
    for group_size in GROUP_SIZES:
        if group_size <= wanted.group_size and columns % group_size == 0:
            return Width(wanted.bits, group_size)
    return None


def stored_shapes(shape: tuple[int, ...], width: Width) -> dict[str, tuple[str | None, tuple[int, ...]]]:
    """suffix -> (dtype or None for the source's, shape)."""
    *leading, columns = shape
    packed = (*leading, columns * width.bits // 32)
    groups = (*leading, columns // width.group_size)
    return {"weight": ("U32", packed), "scales": (None, groups), "biases": (None, groups)}


def quantize_rows(rows: mx.array, width: Width) -> Mapping[str, mx.array]:
    """(rows, columns) of any float dtype -> weight, scales and biases, not yet evaluated."""
    # Here, so that what only asks for shapes starts without MLX.
    import mlx.core as mx

    weight, scales, biases = mx.quantize(rows, group_size=width.group_size, bits=width.bits, mode="affine")
    return {"weight": weight, "scales": scales, "biases": biases}
