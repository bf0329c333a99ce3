"""The segments that are kept, in one radix tree for each salt, and their bytes. Runs in the engine process.

A segment is what was stored at once: in memory, on disk, or both. Several nodes of a tree may show parts of one; it is
gone when none does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from server.engine import kv
from server.engine.compat import Layers
from server.engine.prefixes.disk_tier import StoredSegment
from server.engine.prefixes.prefix_tree import Match, Node, PrefixTree
from server.engine_client.protocol import Kind


@dataclass(eq=False, slots=True)
class CachedSegment:
    """`used` is the look-up that used it last. `writing`: on its way to disk."""

    kind: Kind
    length: int
    used: int
    salt: str
    layers: Layers | None = None
    stored: StoredSegment | None = None
    nbytes: int = 0
    writing: bool = False

    def is_available(self, *, disk: bool) -> bool:
        return self.layers is not None or (disk and self.stored is not None)

    def is_resumable(self, *, disk: bool) -> bool:
        """With the state of the non-trimmable layers."""
        return kv.is_resumable(self.layers) or (disk and self.stored is not None and self.stored.resumable)


SegmentNode = Node[CachedSegment]
Path = Sequence[SegmentNode]


class Shelf:
    def __init__(self) -> None:
        # Bytes of memory.
        self.nbytes = 0
        # Only trees that hold something: clients choose the salts.
        self._trees: dict[str, PrefixTree[CachedSegment]] = {}

    def __iter__(self) -> Iterator[SegmentNode]:
        """Every node, parents before children."""
        for tree in self._trees.values():
            yield from tree

    def match(self, tokens: list[int], salt: str) -> Match[CachedSegment]:
        tree = self._trees.get(salt)
        return tree.match(tokens) if tree else Match([], 0)

    def hold(self, segment: CachedSegment, layers: Layers | None) -> None:
        """In memory; None keeps it on disk only."""
        self.nbytes -= segment.nbytes
        segment.layers = layers
        segment.nbytes = 0 if layers is None else kv.nbytes(layers)
        self.nbytes += segment.nbytes

    def extend(self, match: Match[CachedSegment], beyond: list[int], segment: CachedSegment, start: int) -> SegmentNode:
        """A leaf for the tokens `beyond` the match; they are tokens `start`.. of `segment`."""
        return self._trees.setdefault(segment.salt, PrefixTree()).extend(match, beyond, segment, start)

    def cut(self, match: Match[CachedSegment]) -> SegmentNode:
        """The node that ends where `match`, not an empty one, does."""
        return self._trees[match.path[-1].segment.salt].cut(match)

    def replace(self, node: SegmentNode, segment: CachedSegment, start: int) -> list[StoredSegment]:
        """`node` shows `segment` from now on. Returns the files that nothing needs any more."""
        return self._gone(self._trees[segment.salt].replace(node, segment, start))

    def forget(self, node: SegmentNode) -> list[StoredSegment]:
        """Remove a node and all below it. Returns the files that nothing needs any more."""
        salt = node.segment.salt
        files = self._gone(self._trees[salt].remove(node))
        if not self._trees[salt]:
            del self._trees[salt]
        return files

    def is_shown(self, segment: CachedSegment) -> bool:
        tree = self._trees.get(segment.salt)
        return tree is not None and tree.shows(segment)

    def _gone(self, segments: Sequence[CachedSegment]) -> list[StoredSegment]:
        files = [segment.stored for segment in segments if segment.stored is not None]
        for segment in segments:
            self.hold(segment, None)
            # Nobody is to read it, who may be about to.
            segment.stored = None
        return files


def is_resumable_at_end(node: SegmentNode, *, disk: bool) -> bool:
    """Whether the state of the non-trimmable layers is kept at the node's end: a node split off a segment has none."""
    return node.stop == node.segment.length and node.segment.is_resumable(disk=disk)


def has_children_in_memory(node: SegmentNode) -> bool:
    return any(child.segment.layers is not None for child in node.children.values())


def path_to(node: SegmentNode) -> list[SegmentNode]:
    path = []
    walk: SegmentNode | None = node
    while walk is not None:
        path.append(walk)
        walk = walk.parent
    return path[::-1]


def tokens_to(node: SegmentNode) -> list[int]:
    return [token for step in path_to(node) for token in step.label]


def usable(match: Match[CachedSegment], trimmable: bool, *, disk: bool) -> Path:
    """The part of the path that a sequence can resume: what comes after a gap is useless. `trimmable`: all layers of
    the model are."""
    available = [node.segment.is_available(disk=disk) for node in match.path]
    path = match.path[: available.index(False)] if False in available else match.path
    if not trimmable:
        while path and not (path[-1].end <= match.length and is_resumable_at_end(path[-1], disk=disk)):
            path = path[:-1]
    return path


def reach(path: Path, match: Match[CachedSegment]) -> int:
    """Tokens after which a sequence can resume."""
    return min(path[-1].end, match.length) if path else 0
