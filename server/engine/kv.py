"""KV segments: KV caches cut at tokens and joined again. Runs in the engine process.

Two kinds of layers. A trimmable one (full attention) keeps the keys and values of every token, so any range of tokens
can be cut out. A non-trimmable one (sliding window, recurrent state) keeps its state after the last token and cannot go
back to an earlier one.
A segment is a list of mlx-lm caches, one per layer: trimmable layers hold a range of tokens, non-trimmable ones their
whole state at its end, or None where that was dropped. So mlx-lm's own `save_prompt_cache` can write one.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from server.engine import compat
from server.engine.compat import Layers, is_trimmable


def all_trimmable(layers: Layers) -> bool:
    return all(map(is_trimmable, layers))


def is_storable(layers: Layers) -> bool:
    """Whether a segment of them can be read back from a file."""
    return all(map(compat.is_storable, compat.leaves(layers)))


def can_go_back(layers: Layers) -> bool:
    """Whether `extract` may stop at any token of the last forward pass; otherwise only at its last one."""
    return all(map(compat.can_go_back, layers))


def extract(layers: Layers, start: int, stop: int) -> Layers:
    """The segment of tokens start..stop of one sequence; non-trimmable layers as they were after `stop`, or None where
    that is not known. Copies, evaluated."""
    segment = _cut(layers, start, stop)
    evaluate(segment)
    return segment


def trimmable_only(segment: Layers) -> Layers:
    """The segment without the state of its non-trimmable layers."""
    return [layer if layer is not None and is_trimmable(layer) else None for layer in segment]


def is_resumable(segment: Layers | None) -> bool:
    """Whether a sequence can continue from the segment's end."""
    return segment is not None and None not in segment


def concatenate(parts: Sequence[tuple[Layers, int, int]], room: int = 0) -> Layers:
    """Caches to continue from, of consecutive ranges (segment, start, stop); non-trimmable layers are the last one's.
    They have room for `room` more tokens.

    Copies, evaluated: continuing changes nothing in the segments.
    """
    layers = []
    for index, last in enumerate(parts[-1][0]):
        if is_trimmable(last):
            layers.append(compat.join([(segment[index], start, stop) for segment, start, stop in parts], room))
        else:
            layers.append(compat.copy(last))
    evaluate(layers)
    return layers


def evaluate(layers: Layers) -> None:
    mx.eval([layer.state for layer in layers if layer is not None])


def segment_bytes(layers: Layers, start: int, stop: int) -> int:
    """Of what `extract` would copy."""
    return nbytes(_cut(layers, start, stop))


def _cut(layers: Layers, start: int, stop: int) -> Layers:
    """Nothing is computed before it is evaluated."""
    return [
        None
        if layer is None
        else compat.cut(layer, start, stop)
        if is_trimmable(layer)
        else compat.state_at(layer, stop)
        for layer in layers
    ]


def nbytes(segment: Layers) -> int:
    return sum(layer.nbytes for layer in segment if layer is not None)
