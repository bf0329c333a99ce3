"""A radix tree over token sequences. Pure: no tensors, no clock; tested with integers. Runs in the engine process.

Each node's label is a stretch of one block's tokens. A block is what was stored at once (KV of a stretch of tokens);
when a second sequence leaves it half way, its node is split into two views of the same block and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

B = TypeVar("B")


@dataclass(eq=False, slots=True)
class Node(Generic[B]):
    """`label`: the tokens between the parent's end and `end`; they are tokens `start`.. of `block`."""

    label: list[int]
    block: B
    start: int
    end: int
    parent: Node[B] | None = None
    children: dict[int, Node[B]] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        """Where the label ends in the block."""
        return self.start + len(self.label)


@dataclass(frozen=True, slots=True)
class Match(Generic[B]):
    """The nodes along the longest known prefix, root excluded; `length` tokens agree, so the last may agree in part."""

    path: Sequence[Node[B]]
    length: int


class PrefixTree(Generic[B]):
    def __init__(self) -> None:
        self._roots: dict[int, Node[B]] = {}

    def __iter__(self) -> Iterator[Node[B]]:
        """Every node, parents before children."""
        pending = list(self._roots.values())
        while pending:
            node = pending.pop()
            yield node
            pending.extend(node.children.values())

    def match(self, tokens: list[int]) -> Match[B]:
        path: list[Node[B]] = []
        children, length = self._roots, 0
        while length < len(tokens) and (node := children.get(tokens[length])) is not None:
            path.append(node)
            length += common_prefix(node.label, tokens[length : length + len(node.label)])
            if length < node.end:
                break
            children = node.children
        return Match(path, length)

    def extend(self, match: Match[B], tokens: list[int], block: B, start: int) -> Node[B]:
        """A leaf for `tokens` beyond `match` of them; they are tokens `start`.. of `block`."""
        parent = self._end_at(match)
        leaf = Node(list(tokens[match.length :]), block, start, len(tokens), parent)
        self._siblings(leaf)[leaf.label[0]] = leaf
        return leaf

    def cut(self, match: Match[B]) -> Node[B]:
        """The node that ends where `match` (not an empty one) does, split off if need be."""
        node = self._end_at(match)
        if node is None:
            raise ValueError("an empty match ends at no node")
        return node

    def remove(self, node: Node[B]) -> None:
        """With all below it."""
        del self._siblings(node)[node.label[0]]

    def _end_at(self, match: Match[B]) -> Node[B] | None:
        if not match.path:
            return None
        node = match.path[-1]
        return node if node.end == match.length else self._split(node, match.length)

    def _split(self, node: Node[B], end: int) -> Node[B]:
        """Put a node that ends at `end` above `node`, whose label keeps the rest."""
        size = end - (node.end - len(node.label))
        head = Node(node.label[:size], node.block, node.start, end, node.parent)
        self._siblings(node)[head.label[0]] = head
        node.label = node.label[size:]
        node.start += size
        node.parent = head
        head.children = {node.label[0]: node}
        return head

    def _siblings(self, node: Node[B]) -> dict[int, Node[B]]:
        return self._roots if node.parent is None else node.parent.children


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many leading tokens agree: by halves, since comparing slices is what Python does fast."""
    agreed, beyond = 0, min(len(a), len(b)) + 1
    while beyond - agreed > 1:
        middle = (agreed + beyond) // 2
        if a[agreed:middle] == b[agreed:middle]:
            agreed = middle
        else:
            beyond = middle
    return agreed
