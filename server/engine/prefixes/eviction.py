"""What of the prefixes in memory goes first when they are too many. Runs in the engine process."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection

from server.engine import kv
from server.engine.prefixes.persistence import Persistence
from server.engine.prefixes.shelf import SegmentNode, Shelf, has_children_in_memory, is_resumable_at_end
from server.engine_client.protocol import Kind

_EVICTED_FIRST: dict[Kind, int] = {"assistant": 0, "user": 1, "system": 2}
# Not used in this many look-ups: evicted before anything fresh, whatever its kind, or old system prompts would stay
# for ever.
_STALE = 256


class Eviction:
    """`trimmable`: whether all layers of the model are."""

    def __init__(self, shelf: Shelf, disk: Persistence, *, trimmable: bool) -> None:
        self._shelf = shelf
        self._disk = disk
        self._trimmable = trimmable

    def shrink(
        self,
        limit: int,
        now: int,
        *,
        write: bool,
        moving: Collection[SegmentNode] = (),
        staying: Collection[SegmentNode] = (),
    ) -> None:
        """Until they take at most `limit` bytes; `now` counts look-ups. With `write` what is worth it goes to disk, but
        not what is `moving` into caches: it comes back with them. Of what is `staying` only the states go."""
        if self._shelf.nbytes <= limit:
            return
        order = itertools.count()
        waiting = [(_priority(node, now), next(order), node) for node in self._shelf if self._can_go(node, staying)]
        heapq.heapify(waiting)
        while self._shelf.nbytes > limit and waiting:
            _, _, node = heapq.heappop(waiting)
            if not (node.is_in_tree and self._can_go(node, staying)):
                continue
            self._evict(node, write=write and node not in moving, stays=node in staying)
            # What was below others may be an end now: the next one in memory, since a segment that is on disk goes from
            # all its nodes at once.
            parent = node.parent
            while parent is not None and parent.segment.layers is None:
                parent = parent.parent
            if parent is not None and self._can_go(parent, staying):
                heapq.heappush(waiting, (_priority(parent, now), next(order), parent))

    def _can_go(self, node: SegmentNode, staying: Collection[SegmentNode]) -> bool:
        """By itself: ends of paths entirely, inner nodes by the state of their non-trimmable layers."""
        return node.segment.layers is not None and (
            not (has_children_in_memory(node) or node in staying)
            or (not self._trimmable and is_resumable_at_end(node, disk=False))
        )

    def _evict(self, node: SegmentNode, *, write: bool, stays: bool) -> None:
        segment = node.segment
        kept = segment.stored is not None or segment.writing or (write and self._disk.save(node))
        if stays or has_children_in_memory(node):
            self._shelf.hold(segment, kv.trimmable_only(segment.layers or []))
        elif kept:
            self._shelf.hold(segment, None)
        else:
            self._disk.delete(self._shelf.forget(node))


def _priority(node: SegmentNode, now: int) -> tuple[bool, int, int]:
    stale = now - node.segment.used > _STALE
    return not stale, 0 if stale else _EVICTED_FIRST[node.segment.kind], node.segment.used
