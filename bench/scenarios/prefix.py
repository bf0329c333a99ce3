"""A conversation that goes on: cold, the next turn, a sibling question, and the next turn after a restart."""

from __future__ import annotations

import asyncio

from bench import prompts
from bench.peers import MODEL
from bench.result import Measured, Row, Target
from bench.scenario import Scenario, Side, on_windows
from bench.sse import Answer, Client

_TOKENS = 12
_LENGTH = 720
_STEPS = ("cold", "next", "sibling", "restart")


class _Conversation:
    def __init__(self, side: Side) -> None:
        self._document = prompts.text(side.model, _LENGTH - 40, side.number)
        self._number = side.number
        self._turns: tuple[str, ...] = ()

    async def before(self, url: str) -> list[Answer]:
        """Cold, next turn, sibling question."""
        cold = await self._ask(url, prompts.question(self._number))
        following = await self._ask(url, *self._turns, "Say that in other words.")
        sibling = await Client(url, model=MODEL).ask(self._body("How many words has the report?"))
        return [cold, following, sibling]

    async def after(self, url: str) -> Answer:
        """The next turn, on a server that has been started again."""
        return await self._ask(url, *self._turns, "And now in one sentence.")

    async def _ask(self, url: str, *turns: str) -> Answer:
        answer = await Client(url, model=MODEL).ask(self._body(*turns))
        # mlx-lm drops the first space: the next prompt must be the same for all.
        self._turns = (*turns, answer.text.strip())
        return answer

    def _body(self, *turns: str) -> prompts.Body:
        return prompts.chat(*turns, max_tokens=_TOKENS, system=self._document)


def _measure(side: Side) -> Measured:
    conversation = _Conversation(side)
    with side.server() as server:
        answers = asyncio.run(conversation.before(server.url))
    with side.server() as server:
        answers.append(asyncio.run(conversation.after(server.url)))
    values: dict[str, float] = {}
    for step, answer in zip(_STEPS, answers, strict=True):
        values |= {step: answer.ttft, f"{step}_cached": answer.cached_tokens}
    values["restart_share"] = values["restart"] / values["cold"]
    return Measured(values, tuple(a.text for a in answers))


PREFIX = Scenario(
    "prefix",
    f"A prefix of {_LENGTH} tokens",
    (
        Row("cold", "cold: time to first token", "s", Target(1.0)),
        Row("next", "next turn: time to first token", "s", Target(1.0)),
        Row("next_cached", "next turn: tokens from the cache", "", Target(1.0, at_least=True)),
        Row("sibling", "sibling question: time to first token", "s", Target(1.0)),
        Row("sibling_cached", "sibling question: tokens from the cache", "", Target(1.0, at_least=True)),
        Row("restart", "next turn after a restart: time to first token", "s"),
        Row("restart_share", "the same, as a share of cold", "", Target(0.2, absolute=True)),
    ),
    _measure,
)
SLIDING_PREFIX = on_windows(PREFIX)
