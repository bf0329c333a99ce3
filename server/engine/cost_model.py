"""What a sequence costs in memory, measured once after the load. Runs in the engine process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from server.engine import compat, kv

# mlx-lm 0.32.2 lets buffers of keys and values grow by so many tokens.
_BUFFER_STEP = 256
# Widths of a head for which MLX has a kernel on Metal that needs no scores in memory; for 512 it has none (mlx#3885).
_FUSED_WIDTHS = {64, 80, 128}
# Scores of one layer, in times their size: the CPU takes the softmax in place; on Metal a command buffer holds what it
# has used until it is done, which may be a second layer's.
_SCORE_COPIES = {False: 1, True: 2}
# Beside the scores of all heads, for each pair: who may look at whom, and at the edge of a window what that is made of.
_MASK_BYTES = 1
_WINDOW_MASK_BYTES = 2


@dataclass(frozen=True, slots=True)
class KVCostModel:
    """Bytes of KV cache, and what reading a chunk of a prompt needs besides.

    `per_token`: of the layers with full attention, and of kinds that are not known. `windows`: (bytes per token, tokens
    at most) of each sliding window or chunk. `constant`: recurrent state.
    A chunk: `activation_per_token` bytes for each of its tokens; where no kernel fuses attention, `per_score` for each
    pair of a token of it and one of the context, and `per_window_score` of it and one of a window; `per_context` for
    each token of the context, since the buffers of one layer are copied when they grow.
    """

    per_token: int
    windows: tuple[tuple[int, int], ...]
    constant: int
    activation_per_token: int
    per_score: float = 0.0
    per_window_score: float = 0.0
    per_context: int = 0

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of KV cache for one sequence of `tokens` tokens."""
        buffered = -(-tokens // _BUFFER_STEP) * _BUFFER_STEP
        sliding = sum(size * min(buffered, most) for size, most in self.windows)
        return self.per_token * buffered + sliding + self.constant

    def chunk_bytes(self, tokens: int, context: int) -> int:
        """Bytes that reading `tokens` more takes for as long as it lasts, behind `context` tokens."""
        # A window holds the chunk too until the next one is read.
        window = sum(size for size, _ in self.windows)
        keys = context + tokens
        seen = min(keys, max((most for _, most in self.windows), default=0) + tokens)
        # One layer after the other: the larger scores count.
        scores = max(self.per_score * keys, self.per_window_score * seen)
        return int(tokens * (self.activation_per_token + window + scores) + self.per_context * keys)


def measure(model: nn.Module, tokens: int = 32) -> KVCostModel:
    """Reads a short prompt and measures what it takes; Metal compiles its kernels meanwhile."""
    layers = make_prompt_cache(model)
    mx.eval(model.parameters())
    mx.reset_peak_memory()
    with _watched_attention() as scores:
        model(mx.zeros((1, tokens), dtype=mx.int32), cache=layers)
    kv.evaluate(layers)
    # What stays is the KV cache.
    activation = max(0, mx.get_peak_memory() - mx.get_active_memory()) // tokens
    per_token, constant, windows, largest = 0, 0, [], 0
    for layer in compat.leaves(layers):
        if compat.is_recurrent(layer):
            constant += layer.nbytes
        elif (most := compat.window_size(layer)) is not None:
            windows.append((compat.bytes_per_token(layer, tokens), most))
        else:
            per_token += (own := compat.bytes_per_token(layer, tokens))
            largest = max(largest, own)
    wide, narrow = _scores(layers, scores)
    return KVCostModel(per_token, tuple(windows), constant, activation, wide, narrow, largest)


def _scores(layers: compat.Layers, scores: list[float]) -> tuple[float, float]:
    """Of the layers that look at everything, and of those with a window, the largest of each."""
    if len(scores) != len(layers):
        # Nobody knows which is whose.
        return _with_mask(scores, _MASK_BYTES), _with_mask(scores, _WINDOW_MASK_BYTES)
    # Nobody asks for what comes after the last keys and values, so MLX does not compute the last layer's.
    own = list(zip(layers, scores, strict=True))[:-1]
    wide = [score for layer, score in own if _looks_at_everything(layer)]
    narrow = [score for layer, score in own if not _looks_at_everything(layer)]
    return _with_mask(wide, _MASK_BYTES), _with_mask(narrow, _WINDOW_MASK_BYTES)


def _with_mask(scores: list[float], mask_bytes: int) -> float:
    """Of the largest; a kernel that needs no scores has no use for the mask in memory either."""
    largest = max(scores, default=0.0)
    return largest + mask_bytes if largest else 0.0


def _looks_at_everything(layer: Any) -> bool:
    return all(compat.window_size(part) is None for part in compat.leaves([layer]))


@contextlib.contextmanager
def _watched_attention() -> Iterator[list[float]]:
    """Meanwhile each attention of a model adds the bytes that it needs for a pair of tokens."""
    attention: Any = mx.fast.scaled_dot_product_attention
    metal = mx.metal.is_available()
    seen: list[float] = []

    def watched(queries: mx.array, *others: Any, **named: Any) -> mx.array:
        fused = metal and queries.shape[-1] in _FUSED_WIDTHS
        seen.append(0.0 if fused else queries.shape[1] * queries.dtype.size * _SCORE_COPIES[metal])
        result: mx.array = attention(queries, *others, **named)
        return result

    mx.fast.scaled_dot_product_attention = watched  # type: ignore[assignment]
    try:
        yield seen
    finally:
        mx.fast.scaled_dot_product_attention = attention
