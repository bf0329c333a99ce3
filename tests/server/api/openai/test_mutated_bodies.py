"""Bodies of real requests with a few values changed: read, or refused with the name of a field; never anything else."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from server.api.compat.infill_request import parse_infill
from server.api.compat.table import INFILL
from server.api.openai.chat_request import parse_chat
from server.api.openai.completions_request import parse_completion
from server.api.openai.decisions.request import parse_decision
from server.api.openai.decisions.table import DECISIONS
from server.api.openai.table import CHAT, COMPLETIONS
from server.errors import InvalidRequest
from server.settings.types import LimitSettings

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
NAMED = {"type": "function", "function": {"name": "f"}}
BODIES: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "a"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "x"}}],
            },
            {"role": "assistant", "content": None, "reasoning": "r", "tool_calls": [{"id": "c", **NAMED}]},
            {"role": "tool", "tool_call_id": "c", "content": "r"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}},
    },
    {
        "messages": [
            {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "x"},
        ],
        "functions": [{"name": "f"}],
        "function_call": {"name": "f"},
        "reasoning": {"effort": "low", "max_tokens": 5, "exclude": True},
        "thinking": {"type": "enabled", "budget_tokens": 5},
        "chat_template_kwargs": {"enable_thinking": True, "thinking_budget": 5},
    },
    {
        "prompt": "x",
        "structured_outputs": {
            "structural_tag": {"structures": [{"begin": "a", "schema": SCHEMA, "end": "b"}], "triggers": ["a"]}
        },
        "options": {"stop": ["a"], "num_predict": 4},
        "logit_bias": {"5": 1},
        "allowed_token_ids": [1],
        "bad_words": ["a"],
        "guided_choice": ["a"],
    },
    {
        "input_prefix": "x",
        "input_suffix": "y",
        "input_extra": [{"filename": "a", "text": "b"}],
        "samplers": ["top_k", "infill"],
        "response_fields": ["content"],
        "n_indent": 4,
        "n_predict": 5,
    },
]
QUESTIONS: list[dict[str, Any]] = [
    {
        "input": [
            {"role": "user", "content": [{"type": "input_json", "data": {"a": 1}}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "r"}]},
            {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "x"},
            {"type": "custom_tool_call_output", "call_id": "d", "output": "r"},
        ],
        "questions": [
            {"type": "predicate", "instructions": "q", "name": "n"},
            {"type": "choice", "instructions": "q", "choices": [{"value": "a"}, {"value": True, "description": "d"}]},
            {"type": "score", "instructions": "q", "levels": [{"label": "a", "description": "d"}, {"label": "b"}]},
        ],
        "keep_alive": "5m",
    },
]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2.0, 1e300, 3.5, "", "x", "auto", "none", [], {}, ["a"], [1], [[1]], [None],
    {"a": 1}, {"type": "function"}, {"type": ["x"]}, [{"type": {}}], {"name": "f"}, 2**63, [{"role": []}],
]  # fmt: skip
NAMES = [
    *CHAT.works,
    *CHAT.aliases,
    *CHAT.refused,
    *COMPLETIONS.works,
    *INFILL.works,
    *DECISIONS.works,
    "options",
    "foo",
    "type",
    "name",
    "text",
    "id",
]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _mutated(bodies: Sequence[dict[str, Any]], draw: random.Random) -> bytes:
    body = copy.deepcopy(draw.choice(bodies))
    for _ in range(draw.randint(1, 3)):
        holder, key = draw.choice(list(_places(body)) or [(body, "foo")])
        if isinstance(holder, dict) and draw.random() < 0.3:
            holder.pop(key, None)
            key = draw.choice(NAMES)
        holder[key] = copy.deepcopy(draw.choice(VALUES))
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("parse", "bodies"),
    [(parse_chat, BODIES), (parse_completion, BODIES), (parse_infill, BODIES), (parse_decision, QUESTIONS)],
)
def test_a_mutated_body_is_read_or_refused_by_name(
    parse: Callable[[bytes, LimitSettings], Any], bodies: Sequence[dict[str, Any]]
) -> None:
    draw = random.Random(0)
    refused = 0
    for limits in (LimitSettings(), LimitSettings(images="omit")):
        for _ in range(2000):
            body = _mutated(bodies, draw)
            try:
                parse(body, limits)
            except InvalidRequest as error:
                assert error.param, (error.message, body)
                refused += 1
    assert 500 < refused < 4000, "both happen"
