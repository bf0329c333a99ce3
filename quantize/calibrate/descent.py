"""Descent on the objective tr(E H E^T), E = target - weight, one coordinate at a time: codes, or a group's grid.

Each step is the exact minimum over what it may change, and is taken only where it lowers the objective. A row whose
objective, computed anew, is not lower after a sweep keeps what it had.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx

from quantize.calibrate.grids import Quantized, stored
from quantize.calibrate.sweep import Step, sweep
from quantize.forward.products import product


@dataclass(frozen=True, slots=True)
class Descent:
    """Where a descent stands. target, pull: (E, rows, columns) float32; hessian: (E, columns, columns); objective:
    e H e^T of every row, (E, rows, 1).

    `pull` is E H: half of how fast the objective falls as a weight grows. It costs a product of its own, so it is
    computed once a sweep: for the objective behind it, and for the next sweep.
    """

    target: mx.array
    hessian: mx.array
    now: Quantized
    pull: mx.array
    objective: mx.array

    @classmethod
    def at(cls, target: mx.array, hessian: mx.array, now: Quantized) -> Descent:
        error = target - now.weight
        pull = product(error, hessian)
        return cls(target, hessian, now, pull, (pull * error).sum(axis=-1, keepdims=True))

    def codes(self) -> Descent:
        """One sweep over the codes: each takes the best value that the grid has, given all others."""
        now, diagonal = self.now, mx.diagonal(self.hessian, axis1=-2, axis2=-1)

        def step(column: int, pull: mx.array) -> tuple[mx.array, mx.array]:
            scale = now.scales[..., column // now.spec.group_size, None]
            code, curve = now.codes[..., column, None], diagonal[:, column, None, None]
            wanted = code + pull / (curve * mx.where(scale == 0, 1.0, scale))
            chosen = mx.clip(mx.round(wanted), 0, 2**now.spec.bits - 1)
            move = scale * (chosen - code)
            lowers = move * (move * curve - 2 * pull) < 0
            return mx.where(lowers, chosen, code), mx.where(lowers, move, 0.0)

        return self._moved(replace(now, codes=self._swept(1, step)))

    def grids(self) -> Descent:
        """One sweep over the groups: scale and bias of each in closed form, given its codes and all other groups.

        The rounding of a group's scale and bias is an error like any other: the groups to its right see it.
        """
        now, size = self.now, self.now.spec.group_size

        def step(column: int, pull: mx.array) -> tuple[mx.array, mx.array]:
            group = column // size
            block = self.hessian[:, column : column + size, column : column + size]
            codes = now.codes[..., column : column + size]
            scale, bias = now.scales[..., group, None], now.biases[..., group, None]
            # The objective's change is a quadratic in (scale's, bias's) change with these coefficients.
            bent = codes @ block
            ss, sb = (bent * codes).sum(axis=-1, keepdims=True), bent.sum(axis=-1, keepdims=True)
            bb = block.sum(axis=(-2, -1))[:, None, None]
            s, b = (pull * codes).sum(axis=-1, keepdims=True), pull.sum(axis=-1, keepdims=True)
            determinant = ss * bb - sb * sb
            solvable = determinant > 1e-6 * ss * bb
            change = mx.where(solvable, (s * bb - b * sb) / mx.where(solvable, determinant, 1.0), 0.0)
            by_scale = stored(scale + change, now.dtype) - scale
            by_bias = stored(bias + (b - sb * by_scale) / bb, now.dtype) - bias
            quadratic = ss * mx.square(by_scale) + 2 * sb * by_scale * by_bias + bb * mx.square(by_bias)
            lowers = quadratic < 2 * (s * by_scale + b * by_bias)
            by_scale, by_bias = mx.where(lowers, by_scale, 0.0), mx.where(lowers, by_bias, 0.0)
            return mx.concatenate([scale + by_scale, bias + by_bias], axis=-1), by_scale * codes + by_bias

        grids = self._swept(size, step)
        return self._moved(replace(now, scales=grids[..., 0::2], biases=grids[..., 1::2]))

    def _swept(self, unit: int, step: Step) -> mx.array:
        return sweep(self.pull, self.hessian, unit, step)

    def _moved(self, now: Quantized) -> Descent:
        before, after = self, Descent.at(self.target, self.hessian, now)
        lower = after.objective < before.objective
        kept = replace(
            after,
            now=replace(
                now,
                codes=mx.where(lower, after.now.codes, before.now.codes),
                scales=mx.where(lower, after.now.scales, before.now.scales),
                biases=mx.where(lower, after.now.biases, before.now.biases),
            ),
            pull=mx.where(lower, after.pull, before.pull),
            objective=mx.where(lower, after.objective, before.objective),
        )
        mx.eval(kept.now.codes, kept.now.scales, kept.now.biases, kept.pull, kept.objective)
        return kept
