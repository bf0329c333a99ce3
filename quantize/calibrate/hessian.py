"""A batch of Hessians made fit to solve with: damped, and factored."""

from __future__ import annotations

from math import log

import mlx.core as mx

from quantize.forward.products import cholesky, inverse_of_upper

# Tokens a dimension.
STARVED = 5.0
_FED = 25.0


def damping(tokens_per_dimension: float, fed: float = 0.1, starved: float = 1.0) -> float:
    """The share of the mean diagonal to add: `fed` from 25 tokens a dimension on, `starved` below 5, geometric between.

    Fewer tokens than that describe themselves rather than the text to come: weak damping overfits.
    """
    place = (log(max(tokens_per_dimension, 1e-9)) - log(STARVED)) / (log(_FED) - log(STARVED))
    share: float = starved * (fed / starved) ** min(max(place, 0.0), 1.0)
    return share


def damped(hessian: mx.array, share: mx.array) -> mx.array:
    """H + share * mean(diag H) * I. hessian: (E, in, in); share: (E,). A Hessian of zeros becomes the identity."""
    mean = mx.diagonal(hessian, axis1=-2, axis2=-1).mean(axis=-1)
    added = mx.where(mean > 0, share * mean, 1.0)
    return hessian + added[:, None, None] * mx.eye(hessian.shape[-1])


def inverse_root(hessian: mx.array) -> mx.array:
    """U, upper triangular, with U^T U = H^-1. hessian: (E, in, in), positive definite.

    Cholesky of H with rows and columns reversed is a factor V V^T of H with V upper triangular, and U = V^-1: H itself
    is never inverted.
    """
    lower = cholesky(hessian[:, ::-1, ::-1])
    return inverse_of_upper(lower[:, ::-1, ::-1])
