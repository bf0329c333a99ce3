"""An agent's loop on a sliding-window model whose template opens the reply with an empty thought that history drops.

The loop is fixed, so that all sides are asked the same: a long question, then call and result, call and result. No
`tools` are sent, and results come as messages of the user, as agents send them that have calls written in text: servers
differ in what they make of role `tool` where a template does not speak of it, and then their prompts are not the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from bench import prompts
from bench.peers import MODEL
from bench.result import Measured, Row, Target
from bench.scenario import Scenario, Side, on_windows
from bench.sse import Answer, Client

_PROMPT = 740
_RESULT = 150
_STEPS = 3


async def _loop(side: Side, url: str) -> list[Answer]:
    system = prompts.text(side.model, _PROMPT, side.number)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompts.question(side.number)}]
    answers = []
    for step in range(_STEPS):
        answers.append(await Client(url, model=MODEL).ask(prompts.request(messages, max_tokens=8)))
        call = f'{{"name": "read", "arguments": {{"page": {step}}}}}'
        result = prompts.text(side.model, _RESULT, 1000 * side.number + step)
        messages += [{"role": "assistant", "content": call}, {"role": "user", "content": result}]
    return answers


def _measure(side: Side) -> Measured:
    with side.server() as server:
        answers = asyncio.run(_loop(side, server.url))
    values: dict[str, float] = {}
    for step, answer in enumerate(answers, 1):
        values |= {f"ttft_{step}": answer.ttft, f"cached_{step}": answer.cached_tokens}
        if step > 1:
            values[f"share_{step}"] = answer.cached_tokens / answers[step - 2].prompt_tokens
    return Measured(values, tuple(a.text for a in answers))


# All of the last prompt but the opening of the reply, which history writes otherwise.
_ALL = Target(0.97, at_least=True, absolute=True)

TOOL_LOOP = Scenario(
    "tool_loop",
    "A tool loop on a sliding-window model, the prompt longer than the window",
    (
        *(Row(f"cached_{step}", f"step {step}: tokens from the cache", "") for step in range(1, _STEPS + 1)),
        *(Row(f"share_{step}", f"step {step}: share of the last prompt", "", _ALL) for step in range(2, _STEPS + 1)),
    ),
    _measure,
    model="sliding",
)
# On a model that takes its time.
SLIDING_TOOL_LOOP = on_windows(
    replace(TOOL_LOOP, title="a tool loop"),
    (
        Row("ttft_1", "step 1: time to first token", "s"),
        *(Row(f"ttft_{step}", f"step {step}: time to first token", "s", Target(0.8)) for step in range(2, _STEPS + 1)),
        *(Row(f"cached_{step}", f"step {step}: tokens from the cache", "") for step in range(1, _STEPS + 1)),
    ),
)
