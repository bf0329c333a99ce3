"""Tools of the Responses API, and a model's answer that calls them."""

from __future__ import annotations

from typing import Any

from server.chat.deltas import ToolCallDelta
from tests.support.scripted_events import END, THOUGHT_THEN_CALL

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a place.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}
CALLS = (
    *THOUGHT_THEN_CALL,
    ToolCallDelta(0, 1, "call_b", "patch", ""),
    ToolCallDelta(0, 1, arguments='{"input": "*** Begin\\n\\"x\\""}'),
    *END,
)
