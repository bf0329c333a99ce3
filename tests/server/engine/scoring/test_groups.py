"""Which questions are read together, and what of them only once."""

from __future__ import annotations

from server.engine.scoring.groups import chains, groups, length
from server.engine_client.protocol import Branch

YES_NO = [[1], [2]]


def read(branches: list[Branch], most: int = 32) -> int:
    """Tokens of all questions, as they are read."""
    return sum(map(length, branches)) - sum(
        group.head * (len(group.questions) - 1) for group in groups(branches, most) if group.head
    )


def test_every_question_is_in_one_group_and_the_longest_of_a_group_first() -> None:
    branches = [Branch([100 + n, *range(3 + n % 17)], YES_NO) for n in range(90)]
    found = list(groups(branches, 32))
    assert sorted(index for group in found for index in group.questions) == list(range(90))
    for group in found:
        assert len(group.questions) <= 32
        lengths = [len(branches[index].tail) for index in group.questions]
        assert lengths == sorted(lengths, reverse=True)


def test_what_questions_begin_with_is_read_once_a_group() -> None:
    """As many that ask the same of other options do; the two others share nothing."""
    same = [Branch([*range(10), 100 + n, 7], YES_NO) for n in range(100)]
    others = [Branch([50, 51, 52], YES_NO), Branch([60, 61, 62], YES_NO)]
    found = list(groups([*others, *same], 50))
    assert sorted((len(group.questions), group.head) for group in found) == [(2, 0), (50, 10), (50, 10)]
    assert read([*others, *same], 50) == 6 + 2 * 10 + 100 * 2


def test_of_every_question_a_token_is_left_whose_logits_are_looked_at() -> None:
    branches = [Branch([*range(20)], YES_NO) for _ in range(20)]
    assert [group.head for group in groups(branches, 32)] == [19]
    shorter = [*branches, Branch([*range(11)], YES_NO)]
    assert [group.head for group in groups(shorter, 32)] == [10]


def test_a_head_that_is_hardly_shared_is_not_worth_a_pass() -> None:
    branches = [Branch([1, 2, 3, 4, 10 + n], YES_NO) for n in range(20)]
    assert [group.head for group in groups(branches, 32)] == [0]


def test_few_that_begin_alike_do_not_get_passes_of_their_own() -> None:
    branches = [Branch([*[n // 8] * 10, n], YES_NO) for n in range(96)]
    assert [len(group.questions) for group in groups(branches, 32)] == [32, 32, 32]


def test_options_that_begin_alike_are_read_once() -> None:
    assert chains([[5, 6], [5, 7]]) == [([5, 6], [0, 1])]
    assert chains([[1], [2]]) == []
    assert chains([[5, 6, 7], [5, 8], [9, 8], [4]]) == [([5, 6, 7], [0, 1]), ([9, 8], [2])]
    assert length(Branch([1, 2], [[5, 6], [5, 7], [5, 8]])) == 3
