"""What a chat template reads and what it has room for, by its source: what it is given is put in those words. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes

from server.chat.conversation import Reasoning

# The efforts that templates know; the others are the nearest of them.
_EFFORTS = {"minimal": "low", "xhigh": "high", "max": "high"}
_NO_EFFORT = "none"


@dataclass(frozen=True, slots=True)
class Traits:
    """`variables`: the names that the template reads. `knows_tools`: it declares tools itself. `knows_calls`: it writes
    calls and results in a history. `one_call`: it has room for one call in a message.
    `holds_results`: it looks for the results of calls in the message that has the calls. `short_ids`: it refuses ids of
    calls that are not 9 letters and digits. `thought_key`: where it looks for the reasoning of a message beside
    `reasoning_content`."""

    variables: frozenset[str] = frozenset()
    knows_tools: bool = False
    knows_calls: bool = False
    one_call: bool = False
    holds_results: bool = False
    short_ids: bool = False
    thought_key: str | None = None

    @staticmethod
    def of(source: str, environment: Environment) -> Traits:
        try:
            # Not jinja2.meta, whose search computes constant expressions, whatever they cost.
            named = environment.parse(source).find_all(nodes.Name)
            variables = frozenset(node.name for node in named if node.ctx == "load")
        except (TemplateSyntaxError, RecursionError):
            return Traits()
        return Traits(
            variables=variables,
            knows_tools="tools" in variables,
            knows_calls="tool_calls" in source,
            holds_results="tool_responses" in source and "tool_call_id" not in source,
            one_call="tool_calls[0]" in source,
            short_ids="length != 9" in source,
            thought_key="thinking" if "message.thinking" in source else None,
        )


def template_variables(reasoning: Reasoning, traits: Traits) -> dict[str, Any]:
    """What of `reasoning` the template can be told."""
    enabled = reasoning.enabled
    if enabled is None and reasoning.effort is not None:
        enabled = reasoning.effort != _NO_EFFORT
    values: dict[str, Any] = {}
    if enabled is not None:
        values |= {"enable_thinking": enabled, "thinking": enabled}
    if reasoning.effort is not None and reasoning.effort != _NO_EFFORT:
        effort = _EFFORTS.get(reasoning.effort, reasoning.effort)
        values |= {"reasoning_effort": effort, "thinking_effort": effort}
    return {name: value for name, value in values.items() if name in traits.variables}
