"""One tensor of the model that is built: what it is, where it comes from, and what is stored for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from quantize.folder.quant_spec import QuantSpec, stored_shapes
from quantize.folder.safetensors_format import nbytes
from quantize.source.roles import TensorRole


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the model. `name` is its name in an unquantized model; `shape` and `dtype` are the source's.

    `spec` is None for a tensor kept in the source's dtype; `policy_spec` is what the policy asked for where that is not
    it: the columns forced another group size or none, or mlx-lm computes with the matrix unquantized (`left_alone`).
    """

    name: str
    role: TensorRole
    layer: int | None
    shape: tuple[int, ...]
    dtype: str
    spec: QuantSpec | None
    policy_spec: QuantSpec | None = None
    left_alone: bool = False

    @property
    def path(self) -> str:
        """The module's path, as config.json and mlx-lm name it."""
        return self.name.removesuffix(".weight")

    @property
    def why_other(self) -> str | None:
        """Why it is not stored as the policy asks, for the user; None when it is."""
        if self.policy_spec is None:
            return None
        return (
            "mlx-lm computes with it unquantized"
            if self.left_alone
            else f"no group of {self.policy_spec} divides its columns"
        )

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def arrays(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """What is stored: name -> (dtype, shape)."""
        if self.spec is None:
            return {self.name: (self.dtype, self.shape)}
        shapes = stored_shapes(self.shape, self.spec)
        return {f"{self.path}.{suffix}": (dtype or self.dtype, shape) for suffix, (dtype, shape) in shapes.items()}

    @property
    def nbytes(self) -> int:
        return sum(nbytes(dtype, shape) for dtype, shape in self.arrays.values())
