"""A radix tree over token sequences. Pure: no tensors, no clock; tested with integers. Runs in the engine process.

Each node's label is a range of one segment's tokens. A segment is what was stored at once (the KV cache of a range of
tokens); when a second sequence diverges half way, its node is split into two views of the same segment and nothing is
copied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)


@dataclass(eq=False, slots=True)
class Node(Generic[S]):
    """`label`: the tokens between the parent's end and `end`; they are tokens `start`.. of `segment`."""

    label: list[int]
    segment: S
    start: int
    end: int
    parent: Node[S] | None = None
    children: dict[int, Node[S]] = field(default_factory=dict)
    # Neither it nor one above it was removed.
    is_in_tree: bool = True

    @property
    def stop(self) -> int:
        """Where the label ends in the segment."""
        return self.start + len(self.label)


@dataclass(frozen=True, slots=True)
class Match(Generic[S]):
    """The nodes along the longest known prefix, root excluded; `length` tokens agree, so the last may agree in part."""

    path: Sequence[Node[S]]
    length: int


class PrefixTree(Generic[S]):
    def __init__(self) -> None:
        self._roots: dict[int, Node[S]] = {}
        # How many nodes show a part of each segment.
        self._views: Counter[S] = Counter()

    def __bool__(self) -> bool:
        """Whether it holds anything."""
        return bool(self._roots)

    def __iter__(self) -> Iterator[Node[S]]:
        """Every node, parents before children."""
        pending = list(self._roots.values())
        while pending:
            node = pending.pop()
            yield node
            pending.extend(node.children.values())

    def match(self, tokens: list[int]) -> Match[S]:
        path: list[Node[S]] = []
        children, length = self._roots, 0
        while length < len(tokens) and (node := children.get(tokens[length])) is not None:
            path.append(node)
            length += common_prefix(node.label, tokens[length : length + len(node.label)])
            if length < node.end:
                break
            children = node.children
        return Match(path, length)

    def extend(self, match: Match[S], beyond: list[int], segment: S, start: int) -> Node[S]:
        """A leaf for the tokens `beyond` the match; they are tokens `start`.. of `segment`."""
        parent = self._end_at(match)
        leaf = Node(beyond, segment, start, match.length + len(beyond), parent)
        self._siblings(leaf)[leaf.label[0]] = leaf
        self._views[segment] += 1
        return leaf

    def cut(self, match: Match[S]) -> Node[S]:
        """The node that ends where `match` (not an empty one) does, split off if need be."""
        node = self._end_at(match)
        if node is None:
            raise ValueError("an empty match ends at no node")
        return node

    def shows(self, segment: S) -> bool:
        return segment in self._views

    def replace(self, node: Node[S], segment: S, start: int) -> list[S]:
        """The node's tokens are tokens `start`.. of `segment` now. Returns the old one if no node shows it any more."""
        old, node.segment, node.start = node.segment, segment, start
        self._views[segment] += 1
        return self._without_view([old])

    def remove(self, node: Node[S]) -> list[S]:
        """With everything below it. Returns the segments that no node shows any more."""
        del self._siblings(node)[node.label[0]]
        removed, pending = [], [node]
        while pending:
            last = pending.pop()
            last.is_in_tree = False
            removed.append(last.segment)
            pending.extend(last.children.values())
        return self._without_view(removed)

    def _without_view(self, segments: Sequence[S]) -> list[S]:
        self._views.subtract(segments)
        gone = [segment for segment in dict.fromkeys(segments) if self._views[segment] == 0]
        for segment in gone:
            del self._views[segment]
        return gone

    def _end_at(self, match: Match[S]) -> Node[S] | None:
        if not match.path:
            return None
        node = match.path[-1]
        return node if node.end == match.length else self._split(node, match.length)

    def _split(self, node: Node[S], end: int) -> Node[S]:
        """Put a node that ends at `end` above `node`, whose label keeps the rest."""
        size = end - (node.end - len(node.label))
        head = Node(node.label[:size], node.segment, node.start, end, node.parent)
        self._siblings(node)[head.label[0]] = head
        node.label = node.label[size:]
        node.start += size
        node.parent = head
        head.children = {node.label[0]: node}
        self._views[head.segment] += 1
        return head

    def _siblings(self, node: Node[S]) -> dict[int, Node[S]]:
        return self._roots if node.parent is None else node.parent.children


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many leading tokens agree: by bisection, since Python compares slices fast."""
    agreed, beyond = 0, min(len(a), len(b)) + 1
    while beyond - agreed > 1:
        middle = (agreed + beyond) // 2
        if a[agreed:middle] == b[agreed:middle]:
            agreed = middle
        else:
            beyond = middle
    return agreed
