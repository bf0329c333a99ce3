"""Where the parts of a sequence that is to be kept have their places in the tree. Runs in the engine process."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from server.engine import kv
from server.engine.prefixes.aside import Aside
from server.engine.prefixes.prefix_tree import Match
from server.engine.prefixes.shelf import CachedSegment, SegmentNode, Shelf, path_to, reach, usable
from server.engine_client.protocol import Boundary


@dataclass(frozen=True, slots=True)
class Placing:
    """How a sequence is kept behind `match`: segments of the `parts`, for nodes that are `filled` with one of their
    own, for nodes whose `whole` segment it is, and then for those up to each of `ends`."""

    match: Match[CachedSegment]
    filled: Sequence[SegmentNode]
    whole: Sequence[SegmentNode]
    ends: Sequence[Boundary]
    parts: Sequence[kv.Stretch]

    @property
    def stays(self) -> int:
        """Bytes of what it is kept behind, without the states that nobody needs for that."""
        segments = {node.segment for node in self.match.path if node.segment.layers is not None}
        return sum(kv.nbytes(kv.trimmable_only(segment.layers or [])) for segment in segments)

    def too_many(self, needed: int, limit: int) -> int:
        """Tokens of trimmable layers that do not fit into `limit` bytes, where all take `needed`."""
        tokens = sum(part.stop - part.start for part in self.parts)
        return tokens - tokens * max(0, limit) // needed


def place(
    shelf: Shelf, trimmable: bool, tokens: list[int], ends: Sequence[Boundary], salt: str, aside: Aside | None
) -> Placing:
    """What of `tokens` is not in memory; a segment ends at each of `ends`, of which the last is theirs, and where
    `aside` was taken. The nodes of the tree are cut where that is, and hold what they held."""
    match = shelf.match(tokens, salt)
    if aside is not None and not match.length < aside.end <= len(tokens):
        aside = None
    resumable = reach(usable(match, trimmable, disk=False), match) == len(tokens)
    # Read before, but what it needs was not kept here or is gone: a segment of its own now ends here.
    filled = [shelf.cut(match)] if match.length == len(tokens) and not resumable else []
    if match.path and match.length < len(tokens):
        # It may end in the middle of a node, whose rest is another prompt's.
        match = Match(path_to(shelf.cut(match)), match.length)
    # What only the disk had was read again, or moved.
    lost = [node for node in match.path if node.segment.layers is None and node.end <= len(tokens)]
    whole = [node for node in lost if _is_whole(node) and (node not in filled or node.segment.is_resumable(disk=True))]
    filled = [node for node in filled if node not in whole]
    filled += [node for node in lost if node not in [*filled, *whole] and node.segment.stored is None]
    behind = _behind(match.length, ends, aside)
    ranges = [(node.end - len(node.label), node.end) for node in [*filled, *whole]]
    ranges += itertools.pairwise([match.length, *(end.offset for end in behind)])
    states = {aside.end: aside.layers} if aside is not None else {}
    parts = [kv.Stretch(start, stop, states.get(stop), stop == len(tokens)) for start, stop in ranges]
    return Placing(match, filled, whole, behind, parts)


def _is_whole(node: SegmentNode) -> bool:
    return (node.start, node.stop) == (0, node.segment.length)


def _behind(known: int, ends: Sequence[Boundary], aside: Aside | None) -> list[Boundary]:
    """Where the segments behind the first `known` tokens end."""
    *inner, last = ends
    if aside is not None:
        inner.append(Boundary(aside.end, aside.kind))
    between = [end for end in inner if known < end.offset < last.offset]
    return [*between, last] if known < last.offset else []
