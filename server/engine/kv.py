"""KV segments: KV caches cut at tokens and joined again. Runs in the engine process.

Two kinds of layers. A trimmable one (full attention) keeps the keys and values of every token, so any range of tokens
can be cut out. A non-trimmable one (sliding window, recurrent state) keeps its state after the last token and cannot go
back to an earlier one.
A segment is a list of mlx-lm caches, one per layer: trimmable layers hold a range of tokens, non-trimmable ones their
whole state at its end, or None where that was dropped. So mlx-lm's own `save_prompt_cache` can write one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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


class Stretch(NamedTuple):
    """Tokens start..stop of a sequence. `states`: the non-trimmable layers as they were after `stop`, from before. Not
    `is_end`: the layers hold tokens behind `stop` as well."""

    start: int
    stop: int
    states: Layers | None = None
    is_end: bool = True


def extract(layers: Layers, start: int, stop: int) -> Layers:
    """The segment of tokens start..stop of one sequence; non-trimmable layers as they were after `stop`, or None where
    that is not known. Copies, evaluated."""
    [segment] = extract_parts(layers, [Stretch(start, stop)])
    return segment


def extract_parts(layers: Layers, parts: Sequence[Stretch], *, give_up: bool = False) -> list[Layers]:
    """The segment of each of the parts of one sequence; see `extract`.

    With `give_up` each of `layers` is None once it is copied: so it takes the memory of one layer more, not of all.
    """
    segments: list[Layers] = [[] for _ in parts]
    for index, layer in enumerate(layers):
        copies = [_part_of_layer(index, layer, part) for part in parts]
        evaluate(copies)
        for segment, copy in zip(segments, copies, strict=True):
            segment.append(copy)
        if give_up:
            layers[index] = layer = None
    return segments


def states_at(layers: Layers, stop: int) -> Layers | None:
    """The non-trimmable layers as they were after `stop` tokens, and None for the others; nothing where one of them is
    not known. Not evaluated."""
    states = [None if is_trimmable(layer) else compat.state_at(layer, stop) for layer in layers]
    known = all(state is not None or is_trimmable(layer) for state, layer in zip(states, layers, strict=True))
    return states if known else None


def trimmable_only(segment: Layers) -> Layers:
    """The segment without the state of its non-trimmable layers."""
    return [layer if layer is not None and is_trimmable(layer) else None for layer in segment]


def is_resumable(segment: Layers | None) -> bool:
    """Whether a sequence can continue from the segment's end."""
    return segment is not None and None not in segment


def concatenate(parts: Sequence[tuple[Layers, int, int]], room: int = 0, give_up: bool = False) -> Layers:
    """Caches to continue from, of consecutive ranges (segment, start, stop); non-trimmable layers are the last one's.
    They have room for `room` more tokens.

    Copies, evaluated: continuing changes nothing in the segments. With `give_up` each layer of these is None once it
    is copied: what nobody else holds takes the memory of one layer more, not of all.
    """
    layers = []
    for index in range(len(parts[-1][0])):
        layers.append(_joined(index, parts, room))
        evaluate(layers[-1:])
        if give_up:
            for segment, _, _ in parts:
                segment[index] = None
    return layers


def _joined(index: int, parts: Sequence[tuple[Layers, int, int]], room: int) -> Any:
    last = parts[-1][0][index]
    if not is_trimmable(last):
        return compat.copy(last)
    return compat.join([(segment[index], start, stop) for segment, start, stop in parts], room)


def evaluate(layers: Layers) -> None:
    mx.eval([layer.state for layer in layers if layer is not None])


def parts_bytes(layers: Layers, parts: Sequence[Stretch]) -> int:
    """Of what `extract_parts` returns. Nothing is computed."""
    tokens = sum(part.stop - part.start for part in parts)
    return sum(
        nbytes([compat.cut(layer, 0, tokens)])
        if is_trimmable(layer)
        else nbytes([_part_of_layer(index, layer, part) for part in parts])
        for index, layer in enumerate(layers)
    )


def _part_of_layer(index: int, layer: Any, part: Stretch) -> Any:
    """Not evaluated."""
    if layer is None:
        return None
    if is_trimmable(layer):
        return compat.cut(layer, part.start, part.stop)
    if part.states is not None:
        return part.states[index]
    return compat.state_at(layer, part.stop) if part.is_end or compat.can_go_back(layer) else None


def nbytes(segment: Layers) -> int:
    return sum(layer.nbytes for layer in segment if layer is not None)
