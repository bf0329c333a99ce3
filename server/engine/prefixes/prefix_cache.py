"""KV caches of what was read before, found again by the longest prefix. Runs in the engine process.

A radix tree of KV segments (`kv.py`). Where all layers are trimmable, any prefix can be resumed; where some are not,
only the ends of segments can, so the engine stores one at each checkpoint of the prompt. Neighbours share the trimmable
layers of the tokens that they share. What does not fit into `limit` bytes goes: first what nobody has used for long,
then ends of answers, before ends of user messages, before ends of system prompts. Segments that are on disk too
(`persistence.py`) can still be found. Each salt has a tree of its own: what was read under one is not found under
another.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from server.engine import kv
from server.engine.compat import Layers
from server.engine.device.failures import explain
from server.engine.prefixes.aside import Aside
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.prefixes.disk_work import Restore
from server.engine.prefixes.persistence import Persistence, unloaded
from server.engine.prefixes.prefix_tree import Match
from server.engine.prefixes.shelf import (
    CachedSegment,
    Path,
    SegmentNode,
    Shelf,
    has_children_in_memory,
    is_resumable_at_end,
    path_to,
)
from server.engine_client.protocol import Boundary, Kind

log = logging.getLogger("configi.engine")

_EVICTED_FIRST: dict[Kind, int] = {"assistant": 0, "user": 1, "system": 2}
# Not used in this many look-ups: evicted before anything fresh, whatever its kind, or old system prompts would stay
# for ever.
_STALE = 256
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
        # Bytes of memory; takes effect at the next look-up or store.
        self.limit = limit
        self._trimmable = trimmable
        self._prefill_rate = prefill_rate
        self.shelf = Shelf()
        self._clock = 0
        self.disk = Persistence(
            self.shelf, disk, trimmable=trimmable, prefill_rate=prefill_rate, clock=clock, settle=settle
        )

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.shelf.nbytes

    def restore(self, tokens: list[int], salt: str = "") -> Restore:
        """Begin to read from disk what `find` can use then: nothing where that would take longer than prefill."""
        match = self.shelf.match(tokens[:-1], salt)
        path = self._usable(match, disk=True)
        if not unloaded(path):
            return Restore()
        gained = _reach(path, match) - _reach(self._usable(match, disk=False), match)
        rate = self._prefill_rate()
        saved_s = gained / rate if rate else float(gained)
        if rate is not None and self.disk.seconds_to_read(path) >= saved_s:
            return Restore()
        for node in path:
            node.segment.used = self._clock
        return self.disk.restore(path, saved_s)

    def find(self, tokens: list[int], salt: str = "") -> Hit:
        """The caches for the longest prefix of `tokens` in memory but the last one, which must be fed to the model."""
        self._clock += 1
        match = self.shelf.match(tokens[:-1], salt)
        shared = match.length
        for node in self._usable(match, disk=False):
            node.segment.used = self._clock
        path = self._usable(match, disk=False)
        length = _reach(path, match)
        parts = _parts(path, length)
        # First, so that the copy finds the memory that is to be its own. What has to go of the path itself is not lost:
        # it moves into the copy, layer by layer.
        self._shrink(self.limit, write=True, moving={node.segment for node in path})
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
        end can be resumed, and where `aside` was taken. With `give_up` each layer is let go of once it is kept. It is
        for later requests, so when it fails that ends none: raised is only that the device has failed.
        """
        try:
            return self._keep(tokens, layers, boundaries, kind, salt, aside, give_up)
        except Exception as error:
            failure = explain(error)
            if failure.lost:
                raise
            log.error("what was read could not be kept for later", exc_info=error)
            if failure.kind == "memory":
                self.shrink(0)
            return False

    def set_aside(self, layers: Layers, end: int, kind: Kind) -> Aside | None:
        """The state after the first `end` tokens that `layers` hold, for when they are stored; None where there is no
        room for it. It counts as a prefix: `limit` is less by so much."""
        states = kv.states_at(layers, end)
        if states is None or (needed := kv.nbytes(states)) > self.limit:
            return None
        self._shrink(self.limit - needed, write=True)
        for index in range(len(states)):
            kv.evaluate(states[index : index + 1])
        self.limit -= needed
        return Aside(end, kind, states)

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
        if not tokens:
            return False
        known = self.shelf.match(tokens, salt).length
        if aside is not None and not known < aside.end <= len(tokens):
            aside = None
        needed = kv.segment_bytes(layers, known, len(tokens)) + (aside.nbytes if aside is not None else 0)
        if needed > self.limit:
            return False
        # First, so that the copy finds the memory that is to be its own.
        self._shrink(self.limit - needed, write=True)
        match = self.shelf.match(tokens, salt)
        for node in match.path:
            node.segment.used = self._clock
        # Read before, but what it needs was not kept here or is gone: a segment of its own now ends here.
        filled = [self.shelf.cut(match)] if match.length == len(tokens) and not self.has(tokens, salt) else []
        if match.path and match.length < len(tokens):
            # It may end in the middle of a node, whose rest is another prompt's.
            match = Match(path_to(self.shelf.cut(match)), match.length)
        # What only the disk had was read again.
        lost = [n for n in match.path if n.segment.layers is None and n.end <= len(tokens) and n not in filled]
        whole = [node for node in lost if (node.start, node.stop) == (0, node.segment.length)]
        filled += [node for node in lost if node not in whole and node.segment.stored is None]
        ends = _ends(boundaries if self._trimmable else [], aside, Boundary(len(tokens), kind), match.length)
        # The tree changes when all of it is there.
        ranges = [(node.end - len(node.label), node.end) for node in [*filled, *whole]]
        ranges += itertools.pairwise([match.length, *(end.offset for end in ends)])
        states = {aside.end: aside.layers} if aside is not None else {}
        parts = [kv.Stretch(start, stop, states.get(stop)) for start, stop in ranges]
        segments = iter(kv.extract_parts(layers, parts, give_up=give_up))
        for node in filled:
            self._fill(node, next(segments), kind if node.end == len(tokens) else node.segment.kind)
        for node in whole:
            self.shelf.hold(node.segment, next(segments))
        for end in ends:
            leaf = self._add(match, tokens[match.length : end.offset], next(segments), end.kind, salt)
            match = Match([leaf], leaf.end)
        self.make_room()
        return True

    def has(self, tokens: list[int], salt: str = "") -> bool:
        """Whether a sequence can resume just after `tokens` without reading the disk."""
        match = self.shelf.match(tokens, salt)
        return _reach(self._usable(match, disk=False), match) == len(tokens)

    def shrink(self, limit: int) -> None:
        """Evict until at most `limit` bytes of memory are used; what is not on disk is gone."""
        self._shrink(limit, write=False)

    def make_room(self) -> None:
        """Evict what is over the limit."""
        self._shrink(self.limit, write=True)

    # ---- finding

    def _usable(self, match: Match[CachedSegment], *, disk: bool) -> Path:
        """The part of the path that a sequence can resume: what comes after a gap is useless."""
        available = [node.segment.is_available(disk=disk) for node in match.path]
        path = match.path[: available.index(False)] if False in available else match.path
        if not self._trimmable:
            while path and not (path[-1].end <= match.length and is_resumable_at_end(path[-1], disk=disk)):
                path = path[:-1]
        return path

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

    # ---- evicting

    def _shrink(self, limit: int, *, write: bool, moving: Collection[CachedSegment] = ()) -> None:
        """What is `moving` into caches is not written: it comes back with them."""
        if self.nbytes <= limit:
            return
        order = itertools.count()
        waiting = [(self._priority(node), next(order), node) for node in self.shelf if self._can_go(node)]
        heapq.heapify(waiting)
        while self.nbytes > limit and waiting:
            _, _, node = heapq.heappop(waiting)
            if not (node.is_in_tree and self._can_go(node)):
                continue
            self._evict(node, write=write and node.segment not in moving)
            # What was below others may be an end now.
            parent = node.parent
            if parent is not None and self._can_go(parent):
                heapq.heappush(waiting, (self._priority(parent), next(order), parent))

    def _can_go(self, node: SegmentNode) -> bool:
        """By itself: ends of paths entirely, inner nodes by the state of their non-trimmable layers."""
        return node.segment.layers is not None and (
            not has_children_in_memory(node) or (not self._trimmable and is_resumable_at_end(node, disk=False))
        )

    def _priority(self, node: SegmentNode) -> tuple[bool, int, int]:
        stale = self._clock - node.segment.used > _STALE
        return not stale, 0 if stale else _EVICTED_FIRST[node.segment.kind], node.segment.used

    def _evict(self, node: SegmentNode, *, write: bool) -> None:
        segment = node.segment
        kept = segment.stored is not None or segment.writing or (write and self.disk.save(node))
        if has_children_in_memory(node):
            self.shelf.hold(segment, kv.trimmable_only(segment.layers or []))
        elif kept:
            self.shelf.hold(segment, None)
        else:
            self.disk.delete(self.shelf.forget(node))


def _reach(path: Path, match: Match[CachedSegment]) -> int:
    """Tokens after which a sequence can resume."""
    return min(path[-1].end, match.length) if path else 0


def _ends(inner: Sequence[Boundary], aside: Aside | None, last: Boundary, known: int) -> list[Boundary]:
    """Where the segments behind the first `known` tokens end."""
    ends = [*inner, *([Boundary(aside.end, aside.kind)] if aside is not None else [])]
    between = [end for end in ends if known < end.offset < last.offset]
    return [*between, last] if known < last.offset else []


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
