"""The radix tree is pure: sequences of integers in, ranges of segments out."""

from __future__ import annotations

import random

from server.engine.prefixes.prefix_tree import PrefixTree, common_prefix


def put(tree: PrefixTree[str], tokens: list[int], name: str) -> None:
    match = tree.match(tokens)
    tree.extend(match, tokens[match.length :], name, 0)


def ranges(tree: PrefixTree[str], tokens: list[int]) -> list[tuple[str, int, int]]:
    """(segment, start, stop) of what is known of `tokens`."""
    match = tree.match(tokens)
    return [(n.segment, n.start, n.stop - max(0, n.end - match.length)) for n in match.path]


def test_a_prefix_is_found_as_far_as_it_agrees() -> None:
    tree: PrefixTree[str] = PrefixTree()
    put(tree, [1, 2, 3, 4], "a")
    assert ranges(tree, [1, 2, 3, 4, 5]) == [("a", 0, 4)]
    assert ranges(tree, [1, 2, 9]) == [("a", 0, 2)]
    assert ranges(tree, [2]) == []


def test_a_second_sequence_shares_the_segment_of_the_first_up_to_where_they_part() -> None:
    tree: PrefixTree[str] = PrefixTree()
    put(tree, [1, 2, 3, 4], "a")
    put(tree, [1, 2, 8, 9], "b")
    assert ranges(tree, [1, 2, 3, 4]) == [("a", 0, 2), ("a", 2, 4)]
    assert ranges(tree, [1, 2, 8, 9]) == [("a", 0, 2), ("b", 0, 2)]


def test_a_removed_node_takes_what_is_below_it_along_and_nothing_else() -> None:
    tree: PrefixTree[str] = PrefixTree()
    put(tree, [1, 2, 3], "a")
    put(tree, [1, 2, 3, 4], "b")
    put(tree, [1, 7], "c")
    tree.remove(tree.match([1, 2, 3]).path[-1])
    assert ranges(tree, [1, 2, 3, 4]) == [("a", 0, 1)]
    assert ranges(tree, [1, 7]) == [("a", 0, 1), ("c", 0, 1)]


def test_every_prefix_of_many_random_sequences_is_found_whole() -> None:
    rng = random.Random(0)
    tree: PrefixTree[tuple[int, ...]] = PrefixTree()
    sequences = [[rng.randrange(2) for _ in range(rng.randrange(1, 12))] for _ in range(200)]
    for tokens in sequences:
        match = tree.match(tokens)
        if match.length < len(tokens):
            tree.extend(match, tokens[match.length :], tuple(tokens[match.length :]), 0)
    for tokens in sequences:
        match = tree.match(tokens)
        found = [t for n in match.path for t in n.segment[n.start : n.stop]]
        assert match.length == len(tokens)
        assert found[: len(tokens)] == tokens


def test_the_common_prefix_is_that_of_a_walk() -> None:
    rng = random.Random(1)
    for _ in range(500):
        a, b = ([rng.randrange(2) for _ in range(rng.randrange(20))] for _ in range(2))
        walked = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert common_prefix(a, b) == walked
