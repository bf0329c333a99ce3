"""Conversations with tools: each tool is declared in one conversation only, and called there several times.

The material, in tool_use.json, is written by hand for this project; numbers and names are drawn from a seeded generator.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MATERIAL = json.loads((Path(__file__).parent / "tool_use.json").read_text(encoding="utf-8"))
# What {pool} is drawn from.
_POOLS: dict[str, Sequence[str]] = _MATERIAL["pools"]


@dataclass(frozen=True, slots=True)
class _Tool:
    """Templates hold {pool} and {name:low-high}; a name means the same value throughout one call."""

    name: str
    about: str
    parameters: Mapping[str, str]
    arguments: Mapping[str, Any]
    result: Mapping[str, Any]
    asks: Sequence[str]
    answers: Sequence[str]
    system: str = ""
    closing: Sequence[str] = field(default_factory=tuple)


def conversations(seed: int = 16) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [_conversation(_Tool(**tool), rng) for tool in _MATERIAL["tools"]]


def _conversation(tool: _Tool, rng: random.Random) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": tool.system}] if tool.system else []
    for turn, (ask, answer) in enumerate(zip(tool.asks, tool.answers, strict=True)):
        values = _Values(rng)
        call = {"name": tool.name, "arguments": values.fill(tool.arguments)}
        messages += [
            {"role": "user", "content": values.fill(ask)},
            {"role": "assistant", "tool_calls": [{"id": f"call_{turn}", "type": "function", "function": call}]},
            {"role": "tool", "tool_call_id": f"call_{turn}", "name": tool.name, "content": values.fill(tool.result)},
            {"role": "assistant", "content": values.fill(answer)},
        ]
    for place, text in enumerate(tool.closing):
        messages.append({"role": ("user", "assistant")[place % 2], "content": text})
    return {"messages": messages, "tools": [_declared(tool)]}


def _declared(tool: _Tool) -> dict[str, Any]:
    properties = {}
    for name, text in tool.parameters.items():
        kind, description = text.split(": ", 1)
        properties[name] = {"type": kind, "description": description}
    schema = {"type": "object", "properties": properties, "required": list(tool.arguments)}
    return {"type": "function", "function": {"name": tool.name, "description": tool.about, "parameters": schema}}


class _Values:
    """The values of one call: the first mention of a name draws it."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._drawn: dict[str, str] = {}

    def fill(self, template: Any) -> Any:
        if isinstance(template, Mapping):
            return {key: self.fill(value) for key, value in template.items()}
        if isinstance(template, list):
            return [self.fill(value) for value in template]
        if not isinstance(template, str):
            return template
        filled = re.sub(r"\{(\w+)(?::(\d+)-(\d+))?\}", self._value, template)
        return int(filled) if filled.isdigit() and template.startswith("{") else filled

    def _value(self, match: re.Match[str]) -> str:
        name, low, high = match.groups()
        if name not in self._drawn:
            pool = _POOLS.get(name.rstrip("0123456789"))
            self._drawn[name] = str(self._rng.randint(int(low), int(high))) if low else self._rng.choice(pool or [name])
        return self._drawn[name]
