"""KV caches of what was read before, found again by the longest prefix. Runs in the engine process.

A radix tree of KV segments (`kv.py`). Where all layers are trimmable, any prefix can be resumed; where some are not,
only the ends of segments can, so the engine stores one at each checkpoint of the prompt. Neighbours share the trimmable
layers of the tokens that they share. What does not fit into `limit` bytes goes: first what nobody has used for long,
then ends of answers, before ends of user messages, before ends of system prompts. Segments that are on disk too
(`persistence.py`) can still be found. Each salt has a tree of its own: what was read under one is not found under
another.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from server.engine import kv
from server.engine.compat import Layers
from server.engine.device.failures import explain
from server.engine.prefixes.aside import Aside
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.prefixes.disk_work import Restore
from server.engine.prefixes.eviction import Eviction
from server.engine.prefixes.persistence import Persistence, unloaded
from server.engine.prefixes.placing import place
from server.engine.prefixes.prefix_tree import Match
from server.engine.prefixes.shelf import (
    CachedSegment,
    Path,
    SegmentNode,
    Shelf,
    is_resumable_at_end,
    path_to,
    reach,
    usable,
)
from server.engine_client.protocol import Boundary, Kind

log = logging.getLogger("configi.engine")

# Caches to continue from have room for the rest of the prompt, in steps like those that mlx-lm lets them grow by.
_STEP = 256
# Of a conversation, the states of non-trimmable layers that are kept besides those of system prompts and of tokens
# where conversations part: an edit further back reads from there on.
_LATEST_STATES = 4


@dataclass(frozen=True, slots=True)
class Hit:
    """`layers` hold the first `length` tokens; the best candidate shares the first `shared`."""

    layers: Layers | None
    length: int
    shared: int


class PrefixCache:
    """`trimmable`: whether all layers of the model are. `prefill_rate` and `settle` are for `persistence.py`."""

    def __init__(
        self,
        limit: int,
        disk: DiskTier,
        *,
        trimmable: bool,
        prefill_rate: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] | None = None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        # Bytes of memory, and those with what is evicted and on its way to disk: it holds its memory until it is
        # written. Both take effect at the next look-up or store.
        self.limit = limit
        self.memory = sys.maxsize
        self._trimmable = trimmable
        self._prefill_rate = prefill_rate
        self.shelf = Shelf()
        self._clock = 0
        self.disk = Persistence(
            self.shelf, disk, trimmable=trimmable, prefill_rate=prefill_rate, clock=clock, settle=settle
        )
        self._eviction = Eviction(self.shelf, self.disk, trimmable=trimmable)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.shelf.nbytes

    def restore(self, tokens: list[int], salt: str = "", most: int = -1) -> Restore:
        """Begin to read from disk what `find` can use then: nothing where that would take longer than prefill."""
        match = self.shelf.match(tokens[:most], salt)
        path = usable(match, self._trimmable, disk=True)
        if not unloaded(path):
            return Restore()
        gained = reach(path, match) - reach(usable(match, self._trimmable, disk=False), match)
        rate = self._prefill_rate()
        saved_s = gained / rate if rate else float(gained)
        if rate is not None and self.disk.seconds_to_read(path) >= saved_s:
            return Restore()
        for node in path:
            node.segment.used = self._clock
        # What comes takes the memory of the caches that it is to be, which others may still hold.
        self._make_room_and_wait(staying=set(path))
        return self.disk.restore(path, saved_s)

    def find(self, tokens: list[int], salt: str = "", most: int = -1) -> Hit:
        """The caches for the longest prefix in memory of `tokens[:most]`: of all but the last one, where the model is
        asked for what follows it."""
        self._clock += 1
        match = self.shelf.match(tokens[:most], salt)
        shared = match.length
        path = usable(match, self._trimmable, disk=False)
        for node in path:
            node.segment.used = self._clock
        length = reach(path, match)
        parts = _parts(path, length)
        # First, so that the copy finds the memory that is to be its own. What has to go of the path itself is not lost:
        # it moves into the copy, layer by layer.
        self._make_room_and_wait(moving=set(path))
        room = _whole_steps(len(tokens)) - length
        return Hit(kv.concatenate(parts, room, True) if path else None, length, shared)

    def store(
        self,
        tokens: list[int],
        layers: Layers,
        boundaries: Sequence[Boundary],
        kind: Kind,
        salt: str = "",
        *,
        aside: Aside | None = None,
        give_up: bool = False,
    ) -> bool:
        """Keep `layers`, which hold `tokens`; what ends at `boundaries` is of their kinds, the rest is of `kind`.
        Whether they are kept: not what is larger than the limit.

        Trimmable layers are cut at the boundaries so that the parts can be evicted one by one; with others only the
        end can be resumed, and where `aside` was taken. With `give_up` each layer is let go of once it is kept, and of
        trimmable ones as much is as there is room for. It is for later requests, so when it fails that ends none:
        raised is only that the device has failed.
        """
        try:
            return self._keep(tokens, layers, boundaries, kind, salt, aside, give_up)
        except Exception as error:
            self._tolerate(error)
            return False

    def _tolerate(self, error: Exception) -> None:
        failure = explain(error)
        if failure.lost:
            raise error
        log.error("what was read could not be kept for later", exc_info=error)
        if failure.kind == "memory":
            self.shrink(0)

    def set_aside(self, layers: Layers, end: int, kind: Kind) -> Aside | None:
        """The state after the first `end` tokens that `layers` hold, for when they are stored; None where there is no
        room for it, or it fails: see `store`. It counts as a prefix: there is less room for others, until
        `drop_aside`."""
        try:
            return self._set_aside(layers, end, kind)
        except Exception as error:
            self._tolerate(error)
            return None

    def _set_aside(self, layers: Layers, end: int, kind: Kind) -> Aside | None:
        states = kv.states_at(layers, end)
        if states is None or (needed := kv.nbytes(states)) > self.limit:
            return None
        self._shrink(self.limit - needed, write=True)
        if not self._has_memory(needed):
            return None
        for index in range(len(states)):
            kv.evaluate(states[index : index + 1])
        self._take(needed)
        return Aside(end, kind, states)

    def drop_aside(self, aside: Aside) -> None:
        self._take(-aside.nbytes)

    def _take(self, nbytes: int) -> None:
        self.limit -= nbytes
        self.memory -= nbytes

    def _has_memory(self, needed: int) -> bool:
        """Beside what is kept and what is on its way to disk. Nobody waits for it to keep more."""
        return self.nbytes + self.disk.leaving + needed <= self.memory

    def _keep(
        self,
        tokens: list[int],
        layers: Layers,
        boundaries: Sequence[Boundary],
        kind: Kind,
        salt: str,
        aside: Aside | None,
        give_up: bool,
    ) -> bool:
        while tokens:
            ends = [*(boundaries if self._trimmable else []), Boundary(len(tokens), kind)]
            plan = place(self.shelf, self._trimmable, tokens, ends, salt, aside)
            needed, room = kv.parts_bytes(layers, plan.parts), self.limit - plan.stays
            if needed <= room:
                break
            if not (give_up and self._trimmable):
                return False
            if not needed:
                # All of it is here, and too much.
                self.make_room()
                return False
            tokens = tokens[: len(tokens) - plan.too_many(needed, room)]
            kind = next((end.kind for end in boundaries if end.offset >= len(tokens)), kind)
        else:
            return False
        match = plan.match
        # First, so that the copy finds the memory that is to be its own.
        self._shrink(self.limit - needed, write=True, staying=set(match.path))
        if not give_up and not self._has_memory(needed):
            return False
        for node in match.path:
            node.segment.used = self._clock
        # The tree changes when all of it is there.
        segments = iter(kv.extract_parts(layers, plan.parts, give_up=give_up))
        for node in plan.filled:
            self._fill(node, next(segments), kind if node.end == len(tokens) else node.segment.kind)
        for node in plan.whole:
            self.shelf.hold(node.segment, next(segments))
        for end in plan.ends:
            leaf = self._add(match, tokens[match.length : end.offset], next(segments), end.kind, salt)
            match = Match([leaf], leaf.end)
        self.make_room()
        return True

    def has(self, tokens: list[int], salt: str = "") -> bool:
        """Whether a sequence can resume just after `tokens` without reading the disk."""
        match = self.shelf.match(tokens, salt)
        return reach(usable(match, self._trimmable, disk=False), match) == len(tokens)

    def shrink(self, limit: int) -> None:
        """Evict until at most `limit` bytes of memory are used; what is not on disk is gone, or on its way there."""
        self._shrink(limit, write=False)
        self.disk.let_go(max(0, limit - self.nbytes))

    def make_room(self) -> None:
        """Evict what is over the limit."""
        self._shrink(self.limit, write=True)

    def _make_room_and_wait(self, **apart: Collection[SegmentNode]) -> None:
        """Until what went is written, where its memory is needed."""
        self._shrink(self.limit, write=True, **apart)
        self.disk.let_go(max(0, self.memory - self.nbytes))

    def _shrink(self, limit: int, *, write: bool, **apart: Collection[SegmentNode]) -> None:
        self._eviction.shrink(limit, self._clock, write=write, **apart)

    # ---- storing

    def _add(
        self, match: Match[CachedSegment], beyond: list[int], layers: Layers, kind: Kind, salt: str
    ) -> SegmentNode:
        segment = CachedSegment(kind, len(beyond), self._clock, salt)
        self.shelf.hold(segment, layers)
        leaf = self.shelf.extend(match, beyond, segment, 0)
        self._drop_superseded(leaf)
        return leaf

    def _fill(self, node: SegmentNode, layers: Layers, kind: Kind) -> None:
        segment = CachedSegment(kind, len(node.label), self._clock, node.segment.salt)
        self.shelf.hold(segment, layers)
        self.disk.delete(self.shelf.replace(node, segment, 0))
        self._drop_superseded(node)

    def _drop_superseded(self, newest: SegmentNode) -> None:
        """The states before `newest` that no later turn continues from."""
        if self._trimmable:
            return
        kept = 0
        for node in reversed(path_to(newest)):
            if not is_resumable_at_end(node, disk=False) or node.segment.kind == "system" or len(node.children) > 1:
                continue
            kept += 1
            if kept > _LATEST_STATES:
                self.shelf.hold(node.segment, kv.trimmable_only(node.segment.layers or []))


def _whole_steps(tokens: int) -> int:
    return -(-tokens // _STEP) * _STEP


def _parts(path: Path, length: int) -> list[tuple[Layers, int, int]]:
    """Segments of the path and ranges of them, up to `length`; as lists of their own."""
    parts = []
    for node in path:
        if node.segment.layers is None:
            raise RuntimeError("a segment is used before it was loaded")
        parts.append((list(node.segment.layers), node.start, node.stop - max(0, node.end - length)))
    return parts
