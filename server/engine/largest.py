"""The largest of many numbers, for sampling and for logprobs. Runs in the engine process.

On Metal a partition is a full sort, and one of a vocabulary of 262,144 takes several passes over memory. Up to `FEW`
are found in chunks that fit into a thread group, keeping `FEW` of each, and sorting those.
"""

from __future__ import annotations

import functools

import mlx.core as mx
import numpy as np

# So many are found by chunks.
FEW = 64
_CHUNK = 1024


def largest(rows: mx.array, count: int) -> mx.array:
    """The `count` largest of each row, ascending; `rows` is (rows, width), `count` at most its width."""
    if count <= FEW and rows.shape[-1] > _CHUNK:
        rows = mx.topk(_chunks(rows), FEW, axis=-1).reshape(rows.shape[0], -1)
    rows = mx.sort(rows, axis=-1)
    return rows if count == rows.shape[-1] else rows[:, -count:]


def indices_of_largest(rows: mx.array, count: int) -> mx.array:
    """Where they are, descending."""
    width = rows.shape[-1]
    if count > FEW or width <= _CHUNK:
        return mx.argsort(-rows, axis=-1)[:, :count]
    chunks = _chunks(rows)
    kept = (mx.argsort(chunks, axis=-1)[..., -FEW:] + _starts(chunks.shape[1])).reshape(rows.shape[0], -1)
    if width % _CHUNK:
        # Padding is the smallest of all, so what lies behind the row is never among so few; it must be a place in it.
        kept = mx.minimum(kept, width - 1)
    order = mx.argsort(-mx.take_along_axis(rows, kept, axis=-1), axis=-1)[:, :count]
    return mx.take_along_axis(kept, order, axis=-1)


@functools.cache
def _starts(chunks: int) -> mx.array:
    """(chunks, 1): where each begins."""
    return mx.array(np.arange(chunks, dtype=np.uint32)[:, None] * _CHUNK)


def _chunks(rows: mx.array) -> mx.array:
    """(rows, chunks, _CHUNK), padded with -inf."""
    padding = -rows.shape[-1] % _CHUNK
    if padding:
        rows = mx.pad(rows, [(0, 0), (0, padding)], constant_values=-mx.inf)
    return rows.reshape(rows.shape[0], -1, _CHUNK)
