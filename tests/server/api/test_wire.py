"""What a value of the wrong kind is called: one sentence in our words, whatever pydantic says."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field

from server.api.wire import Wire, validated
from server.errors import InvalidRequest


class _Body(Wire):
    items: list[int] = Field([], min_length=1, max_length=2)
    text: str = Field("", max_length=3)
    count: int = Field(0, ge=0)
    names: dict[str, int] = Field({}, max_length=1)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"items": []}, "items should have at least 1 item, not []."),
        ({"items": [1, 2, 3]}, "items should have at most 2 items, not [1, 2, 3]."),
        ({"items": 5}, "items should be a valid list, not 5."),
        ({"text": "abcd"}, "text should have at most 3 characters, not 'abcd'."),
        ({"count": -1}, "count should be greater than or equal to 0, not -1."),
        ({"names": {"a": 1, "b": 2}}, "names should have at most 1 item, not {'a': 1, 'b': 2}."),
    ],
)
def test_a_rule_and_what_came_instead_are_said_once(body: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        validated(_Body, body)
    assert refused.value.message == sentence
