"""What a sequence costs in memory, measured once after the load. Runs in the engine process."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from server.engine import compat, kv


@dataclass(frozen=True, slots=True)
class KVCostModel:
    """Bytes of KV cache, and `activation_per_token` bytes that a prefill chunk needs besides.

    `per_token`: of the layers with full attention, and of kinds that are not known. `windows`: (bytes per token, tokens
    at most) of each sliding window or chunk. `constant`: recurrent state.
    """

    per_token: int
    windows: tuple[tuple[int, int], ...]
    constant: int
    activation_per_token: int

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of KV cache for one sequence of `tokens` tokens."""
        sliding = sum(size * min(tokens, most) for size, most in self.windows)
        return self.per_token * tokens + sliding + self.constant


def measure(model: nn.Module, tokens: int = 32) -> KVCostModel:
    """Reads a short prompt and measures what it takes; Metal compiles its kernels meanwhile."""
    layers = make_prompt_cache(model)
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model(mx.zeros((1, tokens), dtype=mx.int32), cache=layers)
    kv.evaluate(layers)
    activation = max(0, mx.get_peak_memory() - before) // tokens
    per_token, constant, windows = 0, 0, []
    for layer in compat.leaves(layers):
        if compat.is_recurrent(layer):
            constant += layer.nbytes
        elif (most := compat.window_size(layer)) is not None:
            windows.append((compat.bytes_per_token(layer, tokens), most))
        else:
            per_token += compat.bytes_per_token(layer, tokens)
    return KVCostModel(per_token, tuple(windows), constant, activation)
