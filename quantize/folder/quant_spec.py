"""How one matrix is quantized, in MLX's affine format, and the arrays that are stored for it. Needs no MLX.

weight: uint32, `bits` per element packed little-endian, (rows, columns * bits / 32); scales and biases in the dtype of
the source, (rows, columns / group_size). An element is scale * q + bias.
"""

from __future__ import annotations

from dataclasses import dataclass

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """MLX's affine format: `bits` per weight, one 16-bit scale and bias per `group_size` weights of a row."""

    bits: int
    group_size: int = 64

    def __str__(self) -> str:
        return f"{self.bits}-bit gs{self.group_size}"


def fitting_spec(spec: QuantSpec, columns: int) -> QuantSpec | None:
    """`spec`, or the same bits with the largest smaller group size that divides the columns; None when none does."""
    for group_size in GROUP_SIZES:
        if group_size <= spec.group_size and columns % group_size == 0:
            return QuantSpec(spec.bits, group_size)
    return None


def stored_shapes(shape: tuple[int, ...], spec: QuantSpec) -> dict[str, tuple[str | None, tuple[int, ...]]]:
    """suffix -> (dtype or None for the source's, shape)."""
    *leading, columns = shape
    packed = (*leading, columns * spec.bits // 32)
    groups = (*leading, columns // spec.group_size)
    return {"weight": ("U32", packed), "scales": (None, groups), "biases": (None, groups)}
