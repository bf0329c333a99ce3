"""Large float32 products and factors, by whichever library of this machine is fast at them.

MLX multiplies on the GPU and, on macOS, through Accelerate. Its Linux wheel carries the reference BLAS, some fifty
times slower than the OpenBLAS that numpy carries: there, and there alone, what is large goes through numpy.
"""

from __future__ import annotations

import sys

import mlx.core as mx
import numpy as np

# Multiplications; below, handing arrays over costs more than it saves.
_LARGE = 2**20
# Columns of a triangle that is inverted at once.
_SMALL = 64


def product(left: mx.array, right: mx.array) -> mx.array:
    """left @ right. (E, n, k) and (E, k, m), or without E; float32."""
    if not _by_numpy() or left.size * right.shape[-1] < _LARGE:
        return left @ right
    return mx.array(np.matmul(_view(left), _view(right)))


def cholesky(matrices: mx.array) -> mx.array:
    """The lower factor of (E, n, n), positive definite. MLX factors on the CPU only, hence the stream."""
    if _by_numpy():
        return mx.array(np.linalg.cholesky(_view(matrices)))
    return mx.linalg.cholesky(matrices, stream=mx.cpu)


def inverse_of_upper(matrices: mx.array) -> mx.array:
    """The inverse of upper triangular (E, n, n), itself exactly so: by halves, so that the work is in products."""
    size = matrices.shape[-1]
    if size <= _SMALL:
        return mx.linalg.tri_inv(matrices, upper=True, stream=mx.cpu)
    half = size // 2
    first, last = inverse_of_upper(matrices[:, :half, :half]), inverse_of_upper(matrices[:, half:, half:])
    corner = -product(product(first, matrices[:, :half, half:]), last)
    zeros = mx.zeros((matrices.shape[0], size - half, half))
    return mx.concatenate([mx.concatenate([first, corner], axis=-1), mx.concatenate([zeros, last], axis=-1)], axis=-2)


def _by_numpy() -> bool:
    return sys.platform == "linux" and mx.default_device() == mx.cpu


def _view(array: mx.array) -> np.ndarray:
    return np.array(array, copy=False)
