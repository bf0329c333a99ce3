"""Made-up matrices and activations as hidden states are: columns correlated, a few of them large."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True, slots=True)
class Layer:
    """weight: (out, in) bfloat16; inputs, full: (n, in) float32, the quantized and the full-precision stream."""

    weight: mx.array
    inputs: mx.array
    full: mx.array
    held_inputs: mx.array
    held_full: mx.array


def correlated_layer(rows: int, columns: int, tokens: int, *, seed: int = 0, drift: float = 0.1) -> Layer:
    """`tokens` to calibrate with, 2,048 held back. `drift`: how far apart the two streams are."""
    rng = np.random.default_rng(seed)
    rank = columns // 4
    mixing = rng.normal(size=(rank, columns)) / np.sqrt(rank) * np.exp(rng.normal(size=columns))
    bend = rng.normal(size=(columns, columns)) * drift / np.sqrt(columns)

    def streams(count: int) -> tuple[mx.array, mx.array]:
        hidden = rng.normal(size=(count, rank)) @ mixing + 0.3 * rng.normal(size=(count, columns))
        moved = hidden + hidden @ bend + drift * 0.3 * rng.normal(size=(count, columns))
        return mx.array(hidden.astype(np.float32)), mx.array(moved.astype(np.float32))

    inputs, full = streams(tokens)
    held_inputs, held_full = streams(2048)
    weight = mx.array(rng.normal(size=(rows, columns)).astype(np.float32) * 0.05).astype(mx.bfloat16)
    return Layer(weight, inputs, full, held_inputs, held_full)
