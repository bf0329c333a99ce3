"""KV caches of what was read before, found again by the longest prefix. Runs in the engine process.

A radix tree of KV segments (`kv.py`). Where all layers are trimmable, any prefix can be resumed; where some are not,
only the ends of segments can, so the engine stores one at each checkpoint of the prompt. Neighbours share the trimmable
layers of the tokens that they share. What does not fit into `limit` bytes goes: first what nobody has used for long,
then ends of answers, before ends of user messages, before ends of system prompts. Segments that are on disk too
(`disk_tier.py`) can still be found. Each salt has a tree of its own: what was read under one is not found under
another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from server.engine import kv
from server.engine.compat import Layers
from server.engine.prefixes.disk_tier import DiskTier, StoredSegment
from server.engine.prefixes.prefix_tree import Match, Node, PrefixTree
from server.engine_client.protocol import Boundary, Kind

_EVICTED_FIRST: dict[Kind, int] = {"assistant": 0, "user": 1, "system": 2}
# Not used in this many look-ups: evicted before anything fresh, whatever its kind, or old system prompts would stay
# for ever.
_STALE = 256


@dataclass(eq=False, slots=True)
class CachedSegment:
    """What was stored at once: in memory, on disk, or both. `used` is the look-up that used it last."""

    kind: Kind
    length: int
    used: int
    salt: str
    layers: Layers | None = None
    stored: StoredSegment | None = None
    nbytes: int = 0

    def keep(self, layers: Layers | None) -> None:
        """In memory; None keeps it on disk only."""
        self.layers = layers
        self.nbytes = 0 if layers is None else kv.nbytes(layers)

    def is_available(self, *, disk: bool) -> bool:
        return self.layers is not None or (disk and self.stored is not None)

    def is_resumable(self, *, disk: bool) -> bool:
        """With the state of the non-trimmable layers."""
        return kv.is_resumable(self.layers) or (disk and self.stored is not None and self.stored.resumable)


Path = Sequence[Node[CachedSegment]]


@dataclass(frozen=True, slots=True)
class Hit:
    """`layers` hold the first `length` tokens; the best candidate shares the first `shared`."""

    layers: Layers | None
    length: int
    shared: int


class PrefixCache:
    """`trimmable`: whether all layers of the model are. `prefill_rate`: tokens per second, None before it is known."""

    def __init__(
        self, limit: int, disk: DiskTier, *, trimmable: bool, prefill_rate: Callable[[], float | None] = lambda: None
    ) -> None:
        # Bytes of memory; takes effect at the next look-up or store.
        self.limit = limit
        self._disk = disk
        self._trimmable = trimmable
        self._prefill_rate = prefill_rate
        # Only trees that hold something: clients choose the salts.
        self._trees: dict[str, PrefixTree[CachedSegment]] = {}
        self._clock = 0
        for stored in disk.scan():
            self._adopt(stored)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(segment.nbytes for segment in {node.segment for node in self._nodes()})

    def find(self, tokens: list[int], salt: str = "") -> Hit:
        """The caches for the longest usable prefix of `tokens` but the last, which must be fed to the model."""
        self._clock += 1
        tree = self._tree(salt)
        match = tree.match(tokens[:-1])
        path = self._worth_restoring(match)
        while (broken := self._load(path)) is not None:
            self._forget(broken)
            match = tree.match(tokens[:-1])
            path = self._worth_restoring(match)
        for node in path:
            node.segment.used = self._clock
        length = _reach(path, match)
        hit = Hit(_concatenate(path, length) if path else None, length, match.length)
        self.shrink(self.limit)
        return hit

    def store(
        self, tokens: list[int], layers: Layers, boundaries: Sequence[Boundary], kind: Kind, salt: str = ""
    ) -> None:
        """Keep `layers`, which hold `tokens`; what ends at `boundaries` is of their kinds, the rest is of `kind`.

        Trimmable layers are cut at the boundaries so that the parts can be evicted one by one; with others only the end
        can be resumed.
        """
        new = len(tokens) - self._tree(salt).match(tokens).length
        if (needed := kv.segment_bytes(layers, new, len(tokens))) > self.limit:
            return
        # First, so that the copy finds the memory that is to be its own.
        self.shrink(self.limit - needed)
        ends = [b for b in boundaries if b.offset < len(tokens)] if self._trimmable else []
        for end in [*ends, Boundary(len(tokens), kind)]:
            self._store(tokens[: end.offset], layers, end.kind, salt)
        self.shrink(self.limit)

    def has(self, tokens: list[int], salt: str = "") -> bool:
        """Whether a sequence can resume just after `tokens` without reading the disk."""
        match = self._tree(salt).match(tokens)
        return _reach(self._usable(match, disk=False), match) == len(tokens)

    def shrink(self, limit: int) -> None:
        """Evict until at most `limit` bytes of memory are used."""
        while self.nbytes > limit and (victim := min(self._candidates(), key=self._priority, default=None)):
            self._evict(victim)

    def write_one(self) -> bool:
        """Write to disk the segment used last that is not there yet; False when there is none or writing failed."""
        # A segment is represented by its last node; parents first, since a segment is useless without them.
        unwritten = [
            node
            for node in self._nodes()
            if node.segment.layers is not None and node.segment.stored is None and node.stop == node.segment.length
        ]
        if not unwritten or not self._disk.enabled:
            return False
        node = max(unwritten, key=lambda node: (node.segment.used, -node.end))
        segment, tokens = node.segment, _tokens_to(node)
        start = len(tokens) - segment.length
        segment.stored = self._disk.write(tokens, start, segment.kind, segment.layers or [], segment.salt)
        self._forget_lost()
        return segment.stored is not None

    def _tree(self, salt: str) -> PrefixTree[CachedSegment]:
        return self._trees.get(salt) or PrefixTree()

    def _nodes(self) -> Iterator[Node[CachedSegment]]:
        for tree in self._trees.values():
            yield from tree

    # ---- finding

    def _usable(self, match: Match[CachedSegment], *, disk: bool) -> Path:
        """The part of the path that a sequence can resume: what comes after a gap is useless."""
        available = [node.segment.is_available(disk=disk) for node in match.path]
        path = match.path[: available.index(False)] if False in available else match.path
        if not self._trimmable:
            while path and not (path[-1].end <= match.length and _is_resumable_at_end(path[-1], disk=disk)):
                path = path[:-1]
        return path

    def _worth_restoring(self, match: Match[CachedSegment]) -> Path:
        """The usable path, or its part in memory when reading the rest would take longer than prefilling it."""
        path = self._usable(match, disk=True)
        to_read = {node.segment.stored for node in _unloaded(path)}
        rate = self._prefill_rate()
        if not to_read or rate is None:
            return path
        in_memory = self._usable(match, disk=False)
        seconds = self._disk.seconds_to_read(sum(stored.nbytes for stored in to_read if stored is not None))
        return path if seconds < (_reach(path, match) - _reach(in_memory, match)) / rate else in_memory

    def _load(self, path: Path) -> Node[CachedSegment] | None:
        """Bring the path into memory; returns the node whose file is damaged, if one is."""
        for node in _unloaded(path):
            layers = self._disk.read(node.segment.stored) if node.segment.stored is not None else None
            if layers is None:
                return node
            node.segment.keep(layers)
        return None

    # ---- storing

    def _store(self, tokens: list[int], layers: Layers, kind: Kind, salt: str) -> None:
        tree = self._trees.setdefault(salt, PrefixTree())
        match = tree.match(tokens)
        for node in match.path:
            node.segment.used = self._clock
        if match.length < len(tokens):
            segment = CachedSegment(kind, len(tokens) - match.length, self._clock, salt)
            segment.keep(kv.extract(layers, match.length, len(tokens)))
            tree.extend(match, tokens, segment, 0)
        elif not self.has(tokens, salt):
            # Read before, but what it needs was not kept here or is gone: a segment of its own now ends here.
            self._fill(tree.cut(match), layers, kind)
        for node in match.path:
            if node.segment.layers is None and node.segment.stored is None and node.end <= len(tokens):
                self._fill(node, layers, node.segment.kind)

    def _fill(self, node: Node[CachedSegment], layers: Layers, kind: Kind) -> None:
        node.segment, node.start = CachedSegment(kind, len(node.label), self._clock, node.segment.salt), 0
        node.segment.keep(kv.extract(layers, node.end - len(node.label), node.end))

    def _adopt(self, stored: StoredSegment) -> None:
        """A file of an earlier process; those of what is before its segment come first."""
        tokens, tree = list(stored.tokens), self._trees.setdefault(stored.salt, PrefixTree())
        match = tree.match(tokens)
        if match.length < stored.start or match.length == len(tokens):
            self._disk.delete(stored)
            return
        segment = CachedSegment(stored.kind, len(tokens) - stored.start, 0, stored.salt, stored=stored)
        tree.extend(match, tokens, segment, match.length - stored.start)

    # ---- evicting

    def _candidates(self) -> Iterator[Node[CachedSegment]]:
        """What can go by itself: ends of paths entirely, inner nodes by the state of their non-trimmable layers."""
        for node in self._nodes():
            if node.segment.layers is not None and (
                not _has_children_in_memory(node) or (not self._trimmable and _is_resumable_at_end(node, disk=False))
            ):
                yield node

    def _priority(self, node: Node[CachedSegment]) -> tuple[bool, int, int]:
        stale = self._clock - node.segment.used > _STALE
        return not stale, 0 if stale else _EVICTED_FIRST[node.segment.kind], node.segment.used

    def _evict(self, node: Node[CachedSegment]) -> None:
        segment = node.segment
        if _has_children_in_memory(node):
            segment.keep(kv.trimmable_only(segment.layers or []))
        elif segment.stored is not None:
            segment.keep(None)
        else:
            self._forget(node)

    def _forget(self, node: Node[CachedSegment]) -> None:
        """Remove a node and all below it, files too."""
        gone = [node]
        while gone:
            last = gone.pop()
            gone.extend(last.children.values())
            if last.segment.stored is not None:
                self._disk.delete(last.segment.stored)
                last.segment.stored = None
        tree = self._trees[node.segment.salt]
        tree.remove(node)
        if not tree:
            del self._trees[node.segment.salt]

    def _forget_lost(self) -> None:
        """Segments whose files made room for others on disk."""
        for node in self._nodes():
            if node.segment.stored is not None and not self._disk.holds(node.segment.stored):
                node.segment.stored = None
        while (
            lost := next((node for node in self._nodes() if not node.segment.is_available(disk=True)), None)
        ) is not None:
            self._forget(lost)


def _reach(path: Path, match: Match[CachedSegment]) -> int:
    """Tokens after which a sequence can resume."""
    return min(path[-1].end, match.length) if path else 0


def _unloaded(path: Path) -> Path:
    """Of a path to resume, what must be read: the last node with all layers, the others for their trimmable ones."""
    return [n for n in path if n.segment.layers is None or (n is path[-1] and not kv.is_resumable(n.segment.layers))]


def _is_resumable_at_end(node: Node[CachedSegment], *, disk: bool) -> bool:
    """Whether the state of the non-trimmable layers is kept at the node's end: a node split off a segment has none."""
    return node.stop == node.segment.length and node.segment.is_resumable(disk=disk)


def _has_children_in_memory(node: Node[CachedSegment]) -> bool:
    return any(child.segment.layers is not None for child in node.children.values())


def _concatenate(path: Path, length: int) -> Layers:
    parts = []
    for node in path:
        if node.segment.layers is None:
            raise RuntimeError("a segment is used before it was loaded")
        parts.append((node.segment.layers, node.start, node.stop - max(0, node.end - length)))
    return kv.concatenate(parts)


def _tokens_to(node: Node[CachedSegment]) -> list[int]:
    labels = []
    walk: Node[CachedSegment] | None = node
    while walk is not None:
        labels.append(walk.label)
        walk = walk.parent
    return [token for label in reversed(labels) for token in label]
