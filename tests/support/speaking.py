"""What a made-up model says to a prompt of `tool_model`'s template: it reads its task, its tools and their results.

It thinks where the prompt has opened a thought, calls a tool where the task names one thing that only a tool can tell,
and says in the end what the tool has told it. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

THOUGHT = "They want it short."
CITY = "Paris."
JSON_VALUE: Mapping[str, Any] = {"city": "Paris", "degrees": 18}
JSON = json.dumps(JSON_VALUE)
# What a tool says, so that an answer which holds it has seen the result.
DEGREES = "18 degrees"
# For agents: what they run one after the other, and what only running it can tell.
COMMANDS = {"echo $((6*7))-told": "42-told", "echo $((6*9))-told": "54-told"}
TASK = "Run both probe commands and tell me what they say."
TOLD = f"The commands said {' and '.join(COMMANDS.values())}."
# mini-swe-agent ends a task with a command of its own.
SUBMIT = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
# Said back to whom has said it.
_CANARY = re.compile(r"canary-\d+-\d+")

_TOOLS, _TOOLS_END = "You may call these tools:\n", "A call is written like this:"
# By the name of a parameter.
_ARGUMENTS: Mapping[str, Any] = {"city": "Paris", "degrees": 18}
_RUNS = ("command", "cmd", "commands", "script")


@dataclass(frozen=True)
class Offered:
    """A tool that the prompt offers."""

    name: str
    parameters: Mapping[str, Any]

    @property
    def properties(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.parameters.get("properties") or {}
        return found


def said(prompt: str, held: str = "") -> str:
    """The whole answer, thoughts and calls as Hermes models write them. `held`: the grammar that the answer must be
    of, which tells what was asked for beside the prompt."""
    task = "".join(turn for turn in prompt.split("<|im_start|>") if turn.startswith("user\n"))
    tools = tuple(offered(prompt))
    if words := _CANARY.findall(prompt):
        return _call(tools[0], {"word": words[-1]}) if tools else words[-1]
    answer = _answer(prompt, task, tools)
    if held.startswith("start: calls") and not answer.startswith("<tool_call>"):
        answer = _call(next(tool for tool in tools if tool.name in held))
    elif held and "degrees" in held + task and not tools:
        # Of this schema, or any JSON for a question that names the keys.
        answer = JSON
    if prompt.endswith("<think>\n"):
        return f"{THOUGHT}\n</think>\n\n{answer}"
    return answer


def offered(prompt: str) -> Iterator[Offered]:
    _, _, listed = prompt.partition(_TOOLS)
    for line in listed.partition(_TOOLS_END)[0].splitlines():
        function = json.loads(line)["function"]
        yield Offered(function["name"], function.get("parameters") or {})


def _answer(prompt: str, task: str, tools: Sequence[Offered]) -> str:
    """What the task wants done first, else its end: in words, or through a tool where the framework wants that."""
    if TASK in task:
        to_run = [command for command, output in COMMANDS.items() if output not in prompt]
        call = _runs(to_run[0], tools) if to_run else None
        text = CITY if to_run else TOLD
    elif DEGREES in prompt:
        call, text = None, f"It is {DEGREES} in Paris."
    else:
        asked = [tool for tool in tools if "weather" in task and "city" in tool.properties]
        call, text = _call(asked[0]) if asked else None, CITY
    if call is None and SUBMIT in task:
        call = _runs(f"echo {SUBMIT}; echo {text}", tools)
    return call or _ends(text, tools) or text


def _runs(command: str, tools: Sequence[Offered]) -> str | None:
    """Through whichever tool of the agent runs commands."""
    for tool in tools:
        for name in _RUNS:
            if name in tool.properties:
                is_list = tool.properties[name].get("type") == "array"
                return _call(tool, {name: ["bash", "-lc", command] if is_list else command})
    return None


def _ends(text: str, tools: Sequence[Offered]) -> str | None:
    for tool in tools:
        if tool.name in ("final_answer", "final_result", "attempt_completion"):
            return _call(tool, {name: text for name in tool.parameters.get("required", ())})
    return None


def _call(tool: Offered, arguments: Mapping[str, Any] | None = None) -> str:
    filled = {name: _value(name, tool.properties.get(name) or {}) for name in tool.parameters.get("required", ())}
    body = json.dumps({"name": tool.name, "arguments": filled | dict(arguments or {})})
    return f"<tool_call>\n{body}\n</tool_call>"


def _value(name: str, schema: Mapping[str, Any]) -> Any:
    """Something that the schema of a parameter allows."""
    if name in _ARGUMENTS:
        return _ARGUMENTS[name]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    plain: Mapping[Any, Any] = {"integer": 1, "number": 1, "boolean": False, "array": [], "object": {}, "null": None}
    return plain.get(kind, "probe")
