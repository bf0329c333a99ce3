"""KV caches cut at a token and put together again, over mlx-lm's cache classes. Runs in the engine process.

Two kinds of layers. A growing one (full attention) keeps keys and values of every token, so that any stretch of tokens
can be cut out. A fixed one (sliding window, recurrent state) keeps what it has after its last token and cannot go back.
A span is a list of mlx-lm caches, one a layer: growing layers hold a stretch of tokens, fixed ones their whole state at
its end. So mlx-lm's own `save_prompt_cache` can write one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import CacheList, KVCache, RotatingKVCache, make_prompt_cache

# One mlx-lm cache per layer.
Layers = list[Any]


def is_growing(layer: Any) -> bool:
    # Exactly: a subclass may keep more than keys and values.
    return type(layer) is KVCache


def all_growing(layers: Layers) -> bool:
    return all(map(is_growing, layers))


def capture(layers: Layers, start: int, stop: int) -> Layers:
    """A span of the tokens start..stop of one sequence; fixed layers as they stand. Copies, evaluated."""
    span = [_stretch(layer, start, stop) if is_growing(layer) else _copied(layer) for layer in layers]
    mx.eval([layer.state for layer in span])
    return span


def without_fixed(span: Layers) -> Layers:
    """The span with its growing layers only; None stands for the others."""
    return [layer if is_growing(layer) else None for layer in span]


def is_whole(span: Layers | None) -> bool:
    """Whether a sequence can go on from the span's end."""
    return span is not None and None not in span


def join(spans: Sequence[tuple[Layers, int, int]]) -> Layers:
    """Caches to go on with from consecutive stretches (span, start, stop); fixed layers are the last span's.

    Copies, evaluated: what goes on changes nothing in the spans.
    """
    joined = []
    for index, last in enumerate(spans[-1][0]):
        if is_growing(last):
            parts = [_stretch(span[index], start, stop) for span, start, stop in spans]
            layer = KVCache()
            layer.keys = mx.concatenate([part.keys for part in parts], axis=2)
            layer.values = mx.concatenate([part.values for part in parts], axis=2)
            layer.offset = layer.keys.shape[2]
            joined.append(layer)
        else:
            joined.append(_copied(last))
    mx.eval([layer.state for layer in joined])
    return joined


def nbytes(span: Layers) -> int:
    return sum(layer.nbytes for layer in span if layer is not None)


def _stretch(layer: Any, start: int, stop: int) -> Any:
    """Tokens start..stop of a growing layer."""
    cut = KVCache()
    # Contiguous, or the whole buffer would stay in memory behind the slice.
    cut.keys = mx.contiguous(layer.keys[..., start:stop, :])
    cut.values = mx.contiguous(layer.values[..., start:stop, :])
    cut.offset = stop - start
    return cut


def _copied(layer: Any) -> Any:
    """A fixed layer that shares no array with `layer`: mlx-lm assigns into its caches' arrays in place."""
    if isinstance(layer, RotatingKVCache):
        return _window(layer)
    if isinstance(layer, CacheList):
        return CacheList(*map(_copied, layer.caches))
    state = tree_map(lambda leaf: mx.array(leaf) if isinstance(leaf, mx.array) else leaf, layer.state)
    return type(layer).from_state(state)


def _window(layer: RotatingKVCache) -> RotatingKVCache:
    """The last `max_size` tokens in order: after a long slice mlx-lm keeps as many again as the slice had."""
    copy = RotatingKVCache(layer.max_size, layer.keep)
    if layer.keys is not None:
        size = min(layer.offset, layer.max_size)
        # mlx-lm 0.32 has no public way to a rotated cache's order; its own `merge` goes the same way.
        copy.keys = mx.contiguous(layer._temporal_order(layer.keys)[..., -size:, :])
        copy.values = mx.contiguous(layer._temporal_order(layer.values)[..., -size:, :])
        copy.offset, copy._idx = layer.offset, size
    return copy


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a sequence occupies: `growing` bytes a token, `windows` as (bytes a token, most tokens), `constant` bytes.

    `activation`: bytes that a slice of prefill needs besides, per token.
    """

    growing: int
    windows: tuple[tuple[int, int], ...]
    constant: int
    activation: int

    def sequence(self, tokens: int) -> int:
        """Bytes of KV cache for `tokens` tokens."""
        sliding = sum(size * min(tokens, most) for size, most in self.windows)
        return self.growing * tokens + sliding + self.constant


def measure(model: nn.Module, tokens: int = 32) -> Footprint:
    """Reads a short prompt and looks at what it left; Metal compiles its kernels meanwhile."""
    layers = make_prompt_cache(model)
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model(mx.zeros((1, tokens), dtype=mx.int32), cache=layers)
    mx.eval([layer.state for layer in layers])
    activation = max(0, mx.get_peak_memory() - before) // tokens
    growing, constant, windows = 0, 0, []
    for layer in layers:
        # A buffer is larger than its tokens, so sizes are per token of the arrays themselves.
        if is_growing(layer):
            growing += _bytes_per_token(layer)
        elif isinstance(layer, RotatingKVCache):
            windows.append((_bytes_per_token(layer), layer.max_size))
        else:
            constant += sum(leaf.nbytes for _, leaf in tree_flatten(layer.state) if isinstance(leaf, mx.array))
    return Footprint(growing, tuple(windows), constant, activation)


def _bytes_per_token(layer: Any) -> int:
    return int(layer.nbytes) // int(layer.keys.shape[2])
