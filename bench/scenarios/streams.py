"""One stream, and four at once."""

from __future__ import annotations

import asyncio
import time
from statistics import median

from bench import prompts
from bench.peers import MODEL
from bench.result import Measured, Row, Target
from bench.scenario import Scenario, Side, on_windows
from bench.sse import Answer, Client

TOKENS = 48
# One after the other, as they are soon over.
_STORIES = 3


def _one(side: Side) -> Measured:
    async def ask(url: str) -> list[Answer]:
        stories = (prompts.story(_STORIES * side.number + i) for i in range(_STORIES))
        return [await Client(url, model=MODEL).ask(prompts.chat(story, max_tokens=TOKENS)) for story in stories]

    with side.server() as server:
        answers = asyncio.run(ask(server.url))
    values = {"ttft": median(a.ttft for a in answers), "rate": median(a.decode_rate for a in answers)}
    return Measured(values, tuple(a.text for a in answers))


async def together(url: str, streams: int, first: int, tokens: int = TOKENS) -> tuple[list[Answer], float]:
    """`streams` answers at once and the tokens a second of all; `first` numbers the first prompt."""
    client = Client(url, model=MODEL)
    start = time.perf_counter()
    asked = (client.ask(prompts.chat(prompts.story(first + i), max_tokens=tokens)) for i in range(streams))
    answers = await asyncio.gather(*asked)
    seconds = time.perf_counter() - start
    return answers, sum(a.completion_tokens for a in answers) / seconds


def _four(side: Side) -> Measured:
    with side.server() as server:
        answers, rate = asyncio.run(together(server.url, 4, 4 * side.number))
    return Measured({"rate": rate, "worst": max(a.ttft for a in answers)}, tuple(a.text for a in answers))


ONE = Scenario(
    "one_stream",
    f"One stream, {TOKENS} tokens",
    (
        Row("ttft", "time to first token", "s", Target(1.0)),
        Row("rate", "decoding", "tok/s", Target(1.0, at_least=True)),
    ),
    _one,
)
FOUR = Scenario(
    "four_streams",
    f"Four streams at once, {TOKENS} tokens each",
    (
        Row("rate", "all four together", "tok/s", Target(1.05, at_least=True)),
        Row("worst", "worst time to first token", "s", Target(1.0)),
    ),
    _four,
)
SLIDING_ONE, SLIDING_FOUR = on_windows(ONE), on_windows(FOUR)
