"""Every way to ask for reasoning, on a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.chat.conversation import Conversation, GenerationRequest, Reasoning
from tests.support.scripted_service import Running, ScriptedService, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedService()) as up:
        yield up


def _request(server: Running, **fields: Any) -> GenerationRequest:
    reply = server.chat(**fields)
    assert reply.status == 200, reply.body
    return server.service.requests[-1]


REASONING: list[tuple[dict[str, Any], Reasoning]] = [
    ({}, Reasoning()),
    ({"reasoning": {}}, Reasoning()),
    ({"reasoning_effort": "none"}, Reasoning(False, "none")),
    ({"reasoning_effort": "high"}, Reasoning(True, "high")),
    ({"enable_thinking": True}, Reasoning(True)),
    ({"enable_thinking": False}, Reasoning(False)),
    ({"thinking": True}, Reasoning(True)),
    ({"thinking": {"type": "disabled"}}, Reasoning(False)),
    ({"thinking": {"type": "adaptive"}}, Reasoning(True)),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, Reasoning(True, None, 1024)),
    ({"reasoning": {"enabled": False}}, Reasoning(False)),
    ({"reasoning": {"effort": "low"}}, Reasoning(True, "low")),
    ({"reasoning": {"max_tokens": 100}}, Reasoning(True, None, 100)),
    ({"reasoning": "off"}, Reasoning(False)),
    ({"reasoning": "medium"}, Reasoning(True, "medium")),
    ({"think": True}, Reasoning(True)),
    ({"think": "low"}, Reasoning(True, "low")),
    ({"thinking_token_budget": 50}, Reasoning(True, None, 50)),
    ({"thinking_budget_tokens": 0}, Reasoning(False)),
    ({"thinking_budget": -1}, Reasoning(True)),
    ({"enable_thinking": False, "thinking_budget": 4096}, Reasoning(False)),
    ({"enable_thinking": True, "reasoning_effort": "low"}, Reasoning(True, "low")),
    ({"chat_template_kwargs": {"enable_thinking": True}}, Reasoning(True)),
    ({"chat_template_kwargs": {"thinking": False}}, Reasoning(False)),
    ({"chat_template_kwargs": {"thinking_budget": 512, "enable_thinking": True}}, Reasoning(True, None, 512)),
    ({"chat_template_kwargs": {"preserve_thinking": True, "date_string": "1 May"}}, Reasoning()),
    # The more exact one wins.
    ({"reasoning_effort": "medium", "chat_template_kwargs": {"enable_thinking": False}}, Reasoning(False, "medium")),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "reasoning"), REASONING, ids=range(len(REASONING)))
def test_every_way_to_ask_for_reasoning_is_understood(
    server: Running, fields: dict[str, Any], reasoning: Reasoning
) -> None:
    request = _request(server, **fields)
    assert request.options.reasoning == reasoning
    assert isinstance(request.prompt, Conversation)
    assert request.prompt.reasoning == reasoning
    assert request.prompt.template_variables == fields.get("chat_template_kwargs", {})


BAD_REASONING: list[tuple[dict[str, Any], str]] = [
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"reasoning_effort": 0.5}, "reasoning_effort"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"reasoning": {"max_tokens": "x"}}, "reasoning.max_tokens"),
    ({"reasoning": {"enabled": 1}}, "reasoning.enabled"),
    ({"reasoning": 5}, "reasoning"),
    ({"thinking": {"type": "on"}}, "thinking.type"),
    ({"thinking": {"type": ["enabled"]}}, "thinking.type"),
    ({"thinking": {"type": "enabled", "budget_tokens": -5}}, "thinking.budget_tokens"),
    ({"thinking": "yes"}, "thinking"),
    ({"think": "huge"}, "think"),
    ({"thinking_budget": -2}, "thinking_budget"),
    ({"enable_thinking": True, "reasoning_effort": "none"}, "enable_thinking"),
    ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning.effort"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"chat_template_kwargs": {"enable_thinking": "yes"}}, "chat_template_kwargs.enable_thinking"),
    ({"chat_template_kwargs": {"date_string": "x" * 1001}}, "chat_template_kwargs.date_string"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_REASONING, ids=range(len(BAD_REASONING)))
def test_what_cannot_be_meant_of_reasoning_is_a_400(server: Running, fields: dict[str, Any], param: str) -> None:
    reply = server.chat(**fields)
    assert (reply.status, reply.json()["error"]["param"]) == (400, param), reply.body


def test_keys_of_reasoning_that_mean_nothing_here_are_named(server: Running) -> None:
    reply = server.chat(reasoning={"effort": "low", "summary": "auto"}, thinking={"type": "enabled", "display": "x"})
    assert reply.headers["x-configi-ignored"] == "thinking.display, reasoning.summary"
