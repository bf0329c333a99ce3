"""The weight to aim at: the one that gives the full-precision output on the inputs that quantized layers leave."""

from __future__ import annotations

import mlx.core as mx

from quantize.forward.products import product


def corrected(weight: mx.array, drift: mx.array, stream: mx.array | None, root: mx.array) -> mx.array:
    """W* = W + (W C + R^T Xq) (H + damping)^-1, the least squares solution of W* Xq = W Xf + R.

    weight: (E, out, in) float32; drift: C (E, in, in); stream: R^T Xq (E, out, in) or None; root: U (E, in, in) of the
    damped Hessian, see `inverse_root`. Without drift and stream error W* is W.
    """
    wanted = product(weight, drift)
    if stream is not None:
        wanted = wanted + stream
    return weight + product(product(wanted, root.swapaxes(-1, -2)), root)
