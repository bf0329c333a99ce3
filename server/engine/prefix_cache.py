"""KV caches of what was read before, found again by the longest prefix. Runs in the engine process.

A radix tree of spans (`kv.py`). Where all layers grow, any prefix can be gone on from; where some are fixed, only the
ends of spans can, so the engine stores one at each boundary that the prompt marks. Neighbours share the growing layers
of the tokens that they share. What does not fit into `limit` bytes goes: first what nobody has used for long, then
ends of answers, before ends of user messages, before ends of system prompts. Spans that are on disk too
(`disk_tier.py`) stay findable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from server.engine import kv
from server.engine.disk_tier import DiskTier, StoredSpan
from server.engine.kv import Layers
from server.engine.prefix_tree import Match, Node, PrefixTree
from server.engine_client.protocol import Boundary, Kind

_EVICTED_FIRST: dict[Kind, int] = {"assistant": 0, "user": 1, "system": 2}
# Not used in so many look-ups: gone before anything fresh, whatever its kind, or old system prompts would stay for
# ever.
_STALE = 256


@dataclass(eq=False, slots=True)
class CachedSegment:
    """What was stored at once: in memory, on disk, or both. `used` is the look-up that used it last."""

    kind: Kind
    length: int
    used: int
    span: Layers | None = None
    stored: StoredSpan | None = None
    nbytes: int = 0

    def keep(self, span: Layers | None) -> None:
        self.span = span
        self.nbytes = 0 if span is None else kv.nbytes(span)

    def is_there(self, *, disk: bool) -> bool:
        return self.span is not None or (disk and self.stored is not None)

    def is_whole(self, *, disk: bool) -> bool:
        """With the state of the fixed layers."""
        return kv.is_whole(self.span) or (disk and self.stored is not None and self.stored.whole)


Path = Sequence[Node[CachedSegment]]


@dataclass(frozen=True, slots=True)
class Hit:
    """`layers` hold the first `length` tokens; the best candidate shares the first `shared`."""

    layers: Layers | None
    length: int
    shared: int


class PrefixCache:
    """`growing`: whether all layers of the model are. `prefill_rate` tells measured tokens a second, None before."""

    def __init__(
        self, limit: int, disk: DiskTier, *, growing: bool, prefill_rate: Callable[[], float | None] = lambda: None
    ) -> None:
        # Bytes of memory, from the next look-up or storing on.
        self.limit = limit
        self._disk = disk
        self._growing = growing
        self._prefill_rate = prefill_rate
        self._tree: PrefixTree[CachedSegment] = PrefixTree()
        self._clock = 0
        for stored in disk.scan():
            self._adopt(stored)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(block.nbytes for block in {node.block for node in self._tree})

    def find(self, tokens: list[int]) -> Hit:
        """The caches for the longest usable prefix of `tokens` but the last, which is to be fed to the model."""
        self._clock += 1
        match = self._tree.match(tokens[:-1])
        path = self._worth_restoring(match)
        while (broken := self._load(path)) is not None:
            self._forget(broken)
            match = self._tree.match(tokens[:-1])
            path = self._worth_restoring(match)
        for node in path:
            node.block.used = self._clock
        length = _reach(path, match)
        hit = Hit(_join(path, length) if path else None, length, match.length)
        self.shrink(self.limit)
        return hit

    def store(self, tokens: list[int], layers: Layers, boundaries: Sequence[Boundary], kind: Kind) -> None:
        """Keep `layers`, which hold `tokens`; stretches up to `boundaries` are of their kinds, the rest is of `kind`.

        Growing models are cut at the boundaries so that the parts can be evicted one by one; for others only what
        ends here can be gone on from.
        """
        ends = [b for b in boundaries if b.offset < len(tokens)] if self._growing else []
        for end in [*ends, Boundary(len(tokens), kind)]:
            self._store(tokens[: end.offset], layers, end.kind)
        self.shrink(self.limit)

    def has(self, tokens: list[int]) -> bool:
        """Whether a sequence can be gone on from just after `tokens`, out of memory."""
        match = self._tree.match(tokens)
        return _reach(self._usable(match, disk=False), match) == len(tokens)

    def shrink(self, limit: int) -> None:
        """Drop what must go for at most `limit` bytes of memory."""
        while self.nbytes > limit and (victim := min(self._candidates(), key=self._worth, default=None)):
            self._evict(victim)

    def write_one(self) -> bool:
        """Write to disk the span used last that is not there yet; False when there is none."""
        # The last node of a block speaks for it; parents first, for a span alone stands on nothing.
        unwritten = [
            node
            for node in self._tree
            if node.block.span is not None and node.block.stored is None and node.stop == node.block.length
        ]
        if not unwritten or not self._disk.enabled:
            return False
        node = max(unwritten, key=lambda node: (node.block.used, -node.end))
        block, tokens = node.block, _tokens_to(node)
        block.stored = self._disk.write(tokens, len(tokens) - block.length, block.kind, block.span or [])
        self._forget_lost()
        return block.stored is not None

    # ---- finding

    def _usable(self, match: Match[CachedSegment], *, disk: bool) -> Path:
        """The part of the path from which a sequence can go on: what comes behind a gap stands on nothing."""
        there = [node.block.is_there(disk=disk) for node in match.path]
        path = match.path[: there.index(False)] if False in there else match.path
        if not self._growing:
            while path and not (path[-1].end <= match.length and _ends_whole(path[-1], disk=disk)):
                path = path[:-1]
        return path

    def _worth_restoring(self, match: Match[CachedSegment]) -> Path:
        """The usable path, or what of it is in memory when reading the rest would take longer than prefilling it."""
        path = self._usable(match, disk=True)
        to_read = {node.block.stored for node in _unloaded(path)}
        rate = self._prefill_rate()
        if not to_read or rate is None:
            return path
        in_memory = self._usable(match, disk=False)
        seconds = self._disk.seconds_to_read(sum(stored.nbytes for stored in to_read if stored is not None))
        return path if seconds < (_reach(path, match) - _reach(in_memory, match)) / rate else in_memory

    def _load(self, path: Path) -> Node[CachedSegment] | None:
        """Bring the path into memory; returns the node whose file is damaged, if one is."""
        for node in _unloaded(path):
            span = self._disk.read(node.block.stored) if node.block.stored is not None else None
            if span is None:
                return node
            node.block.keep(span)
        return None

    # ---- storing

    def _store(self, tokens: list[int], layers: Layers, kind: Kind) -> None:
        match = self._tree.match(tokens)
        for node in match.path:
            node.block.used = self._clock
        if match.length < len(tokens):
            block = CachedSegment(kind, len(tokens) - match.length, self._clock)
            block.keep(kv.capture(layers, match.length, len(tokens)))
            self._tree.extend(match, tokens, block, 0)
        elif not self.has(tokens):
            # Read before, but what it needs was not kept here or is gone: a block of its own now ends here.
            self._fill(self._tree.cut(match), layers, kind)
        for node in match.path:
            if node.block.span is None and node.block.stored is None and node.end <= len(tokens):
                self._fill(node, layers, node.block.kind)

    def _fill(self, node: Node[CachedSegment], layers: Layers, kind: Kind) -> None:
        node.block, node.start = CachedSegment(kind, len(node.label), self._clock), 0
        node.block.keep(kv.capture(layers, node.end - len(node.label), node.end))

    def _adopt(self, stored: StoredSpan) -> None:
        """A file of an earlier process; those of shorter prefixes come first."""
        tokens = list(stored.tokens)
        match = self._tree.match(tokens)
        if match.length < stored.start or match.length == len(tokens):
            self._disk.delete(stored)
            return
        block = CachedSegment(stored.kind, len(tokens) - stored.start, 0, stored=stored)
        self._tree.extend(match, tokens, block, match.length - stored.start)

    # ---- evicting

    def _candidates(self) -> Iterator[Node[CachedSegment]]:
        """What can go by itself: ends of paths whole, inner nodes by the state of their fixed layers."""
        for node in self._tree:
            if node.block.span is not None and (
                not _has_children_in_memory(node) or (not self._growing and _ends_whole(node, disk=False))
            ):
                yield node

    def _worth(self, node: Node[CachedSegment]) -> tuple[bool, int, int]:
        stale = self._clock - node.block.used > _STALE
        return not stale, 0 if stale else _EVICTED_FIRST[node.block.kind], node.block.used

    def _evict(self, node: Node[CachedSegment]) -> None:
        block = node.block
        if _has_children_in_memory(node):
            block.keep(kv.without_fixed(block.span or []))
        elif block.stored is not None:
            block.keep(None)
        else:
            self._forget(node)

    def _forget(self, node: Node[CachedSegment]) -> None:
        """Remove a node and all below it, files too."""
        gone = [node]
        while gone:
            last = gone.pop()
            gone.extend(last.children.values())
            if last.block.stored is not None:
                self._disk.delete(last.block.stored)
                last.block.stored = None
        self._tree.remove(node)

    def _forget_lost(self) -> None:
        """Spans whose files made room for others on disk."""
        for node in self._tree:
            if node.block.stored is not None and not self._disk.holds(node.block.stored):
                node.block.stored = None
        while (lost := next((node for node in self._tree if not node.block.is_there(disk=True)), None)) is not None:
            self._forget(lost)


def _reach(path: Path, match: Match[CachedSegment]) -> int:
    """Tokens that can be gone on from."""
    return min(path[-1].end, match.length) if path else 0


def _unloaded(path: Path) -> Path:
    """Of a path to go on from, what must be read: the last node whole, the others for their growing layers."""
    return [n for n in path if n.block.span is None or (n is path[-1] and not kv.is_whole(n.block.span))]


def _ends_whole(node: Node[CachedSegment], *, disk: bool) -> bool:
    """Whether the fixed layers' state at the node's end is kept: a node split off another's block has none."""
    return node.stop == node.block.length and node.block.is_whole(disk=disk)


def _has_children_in_memory(node: Node[CachedSegment]) -> bool:
    return any(child.block.span is not None for child in node.children.values())


def _join(path: Path, length: int) -> Layers:
    stretches = []
    for node in path:
        if node.block.span is None:
            raise RuntimeError("a span is joined before it was loaded")
        stretches.append((node.block.span, node.start, node.stop - max(0, node.end - length)))
    return kv.join(stretches)


def _tokens_to(node: Node[CachedSegment]) -> list[int]:
    labels = []
    walk: Node[CachedSegment] | None = node
    while walk is not None:
        labels.append(walk.label)
        walk = walk.parent
    return [token for label in reversed(labels) for token in label]
