"""A conversation that goes on: cold, the next turn, a sibling question, and the next turn after a restart."""

from __future__ import annotations

import asyncio
from statistics import median

from bench import prompts
from bench.result import Measured, Row, Target
from bench.scenario import Scenario, Side
from bench.sse import Answer, Client

_PREFIX = 720
_TOKENS = 12
_STEPS = ("cold", "next", "sibling", "restart")


class _Conversation:
    def __init__(self, side: Side, number: int) -> None:
        self._document = prompts.text(side.model, _PREFIX - 40, number)
        self._number = number
        self._turns: tuple[str, ...] = ()

    async def before(self, url: str) -> list[Answer]:
        """Cold, next turn, sibling question."""
        cold = await self._ask(url, prompts.question(self._number))
        following = await self._ask(url, *self._turns, "Say that in other words.")
        sibling = await Client(url).ask(self._body("How many words has the report?"))
        return [cold, following, sibling]

    async def after(self, url: str) -> Answer:
        """The next turn, on a server that has been started again."""
        return await self._ask(url, *self._turns, "And now in one sentence.")

    async def _ask(self, url: str, *turns: str) -> Answer:
        answer = await Client(url).ask(self._body(*turns))
        self._turns = (*turns, answer.text)
        return answer

    def _body(self, *turns: str) -> prompts.Body:
        return prompts.chat(*turns, max_tokens=_TOKENS, system=self._document)


def _measure(side: Side) -> Measured:
    conversations = [_Conversation(side, number) for number in range(side.repeat)]
    with side.server() as server:
        rounds = [asyncio.run(conversation.before(server.url)) for conversation in conversations]
    with side.server() as server:
        for answers, conversation in zip(rounds, conversations, strict=True):
            answers.append(asyncio.run(conversation.after(server.url)))
    values: dict[str, float] = {}
    for step, answers in zip(_STEPS, zip(*rounds, strict=True), strict=True):
        values[step] = median(a.ttft for a in answers)
        values[f"{step}_cached"] = median(a.cached_tokens for a in answers)
    values["restart_share"] = values["restart"] / values["cold"]
    return Measured(values, tuple(a.text for answers in rounds for a in answers))


PREFIX = Scenario(
    "prefix",
    f"A prefix of {_PREFIX} tokens",
    (
        Row("cold", "cold: time to first token", "s", Target(1.03)),
        Row("next", "next turn: time to first token", "s", Target(1.03)),
        Row("next_cached", "next turn: tokens from the cache", "", Target(1.0, at_least=True)),
        Row("sibling", "sibling question: time to first token", "s", Target(1.03)),
        Row("sibling_cached", "sibling question: tokens from the cache", "", Target(1.0, at_least=True)),
        Row("restart", "next turn after a restart: time to first token", "s"),
        Row("restart_share", "the same, as a share of cold", "", Target(0.2, absolute=True)),
    ),
    _measure,
)
