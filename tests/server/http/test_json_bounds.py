"""Bodies that parsers are slow on are refused before one sees them; what people send is not, whatever is in it."""

from __future__ import annotations

import json

import pytest

from server.errors import InvalidRequest
from server.http.json_bounds import check_bounds
from server.settings.types import LimitSettings

LIMITS = LimitSettings(max_json_items=1000, max_json_containers=100, max_json_slow_numbers=10)


@pytest.mark.parametrize(
    "body",
    [
        [2e-320] * 11,
        [12345678901234567890] * 11,
        [0.1234567890123456789012] * 11 + [1e300] * 11,
        [[[]]] * 51,
        [{}] * 101,
        [1] * 1002,
        [""] * 1002,
        {str(i): i for i in range(1002)},
    ],
)
def test_more_than_a_request_can_mean_is_refused(body: object) -> None:
    with pytest.raises(InvalidRequest, match="too complex"):
        check_bounds(json.dumps(body).encode(), LIMITS)


@pytest.mark.parametrize(
    "text",
    ["2e-320," * 500, "[{" * 500, "," * 5000, '"' * 2000, '\\"[' * 500, "\\" * 999, "1" * 5000, "é[" * 200],
)
def test_what_stands_in_a_text_does_not_count(text: str) -> None:
    check_bounds(json.dumps({"messages": [{"content": text}] * 3}).encode(), LIMITS)


def test_the_ids_of_a_whole_context_are_accepted() -> None:
    check_bounds(json.dumps({"prompt": [123_456] * 262_144}).encode(), LimitSettings())


@pytest.mark.parametrize("raw", [b'{"x":"', b'"\\', b'"' * 999, b'{"a' * 90, b"\\" * 5000, b'"\\"' * 400])
def test_what_is_no_json_is_left_to_the_parser(raw: bytes) -> None:
    check_bounds(raw, LIMITS)
