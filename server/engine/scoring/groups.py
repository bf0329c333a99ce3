"""Which questions are read together, and which of their tokens only once. Pure; engine process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from server.engine_client.protocol import Branch

# Tokens of questions that are read before the first of them are forgotten: each costs the others a little attention.
_GROUP_TOKENS = 512
# Questions that begin with so many same tokens stand together, where there are so many of them.
_SAME_TOKENS, _SAME_QUESTIONS = 4, 16
# Tokens that must be saved for it: a head that is read once takes a pass of its own, in which the device reads the
# model's weights and the prompt's keys as for any other.
_WORTH_A_PASS = 128


@dataclass(frozen=True, slots=True)
class Group:
    """Questions by index, longest first. `head`: tokens with which all of them begin, to be read once; never all of
    one's."""

    questions: Sequence[int]
    head: int


def groups(branches: Sequence[Branch], most: int) -> Iterator[Group]:
    """At most `most` questions each, of like length, so that padding is short."""
    begin = Counter(tuple(branch.tail[:_SAME_TOKENS]) for branch in branches)

    def family(index: int) -> tuple[int, ...]:
        first = tuple(branches[index].tail[:_SAME_TOKENS])
        return first if begin[first] >= _SAME_QUESTIONS else ()

    of_group: list[int] = []
    head = tokens = 0
    for index in sorted(range(len(branches)), key=lambda index: (family(index), -length(branches[index]))):
        if of_group:
            shared = _common(branches[of_group[0]].tail[:head], branches[index].tail[:-1])
            unshared = tokens + length(branches[index]) - shared * len(of_group)
            if family(index) == family(of_group[0]) and len(of_group) < most and unshared <= _GROUP_TOKENS:
                of_group.append(index)
                head, tokens = shared, tokens + length(branches[index])
                continue
            yield _group(of_group, head)
        of_group, head, tokens = [index], len(branches[index].tail) - 1, length(branches[index])
    yield _group(of_group, head)


def length(branch: Branch) -> int:
    """Tokens to read for it alone."""
    return len(branch.tail) + sum(len(chain) - 1 for chain, _ in chains(branch.options))


def chains(options: Sequence[Sequence[int]]) -> list[tuple[Sequence[int], list[int]]]:
    """Of the options those that are to be read, each with all whose tokens but the last it begins with."""
    found: list[tuple[Sequence[int], list[int]]] = []
    for number in sorted(range(len(options)), key=lambda number: -len(options[number])):
        option = options[number]
        if len(option) < 2:
            continue
        for chain, scored in found:
            if chain[: len(option) - 1] == option[:-1]:
                scored.append(number)
                break
        else:
            found.append((option, [number]))
    return found


def _group(questions: Sequence[int], head: int) -> Group:
    return Group(questions, head if head * (len(questions) - 1) >= _WORTH_A_PASS else 0)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens they begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))
