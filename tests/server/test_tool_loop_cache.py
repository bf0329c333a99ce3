"""A tool loop of ten steps keeps what was read: over HTTP, with the real engine, on a model with sliding windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.loop_templates import ONE_TURN, THOUGHTS, TURNS
from tests.support.running import Running, serving
from tests.support.sliding_model import write_sliding_model

STEPS = 10
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}]


def _step(number: int) -> list[dict[str, Any]]:
    """What the client adds to the history: the call as the server told it, and what came of it."""
    arguments = json.dumps({"path": f"src/file {number}", "words": ["the", "answer", number]})
    call = {"id": f"call_{number}", "type": "function", "function": {"name": "look", "arguments": arguments}}
    thought = f"I have to look at file {number} before I go on."
    return [
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": thought},
        {"role": "tool", "tool_call_id": f"call_{number}", "content": f"file {number} holds the story of the sea " * 3},
    ]


def _cached(server: Running, messages: list[dict[str, Any]]) -> tuple[int, int]:
    """How many tokens of the prompt were not read again, of how many."""
    status, answer = server.chat(model="tiny", messages=messages, tools=TOOLS, tool_choice="none", max_tokens=4)
    assert status == 200, answer
    usage = answer["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


@pytest.mark.parametrize("template", [TURNS, THOUGHTS, ONE_TURN], ids=["turns", "thoughts", "one turn"])
def test_cached_tokens_grow_at_every_step_of_a_tool_loop_and_after_a_restart(tmp_path: Path, template: str) -> None:
    model = write_sliding_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text(template)
    storage = {"storage": {"cache_dir": str(tmp_path / "kept")}, "cache": {"disk_limit": 10**9}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is the answer? Look at all the files."}]
    counts: list[tuple[int, int]] = []
    for half in (range(STEPS // 2), range(STEPS // 2, STEPS)):
        with serving(tmp_path, model, **storage) as server:
            for number in half:
                counts.append(_cached(server, messages))
                messages += _step(number)
            server.stop()
    grown = [cached for cached, _ in counts]
    # All but what the last step has added, and the few tokens at the joint.
    for (cached, _), (_, before) in zip(counts[1:], counts, strict=False):
        assert cached >= before - 20, counts
    assert grown == sorted(set(grown)), counts
