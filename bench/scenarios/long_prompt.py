"""A long prompt arrives: what a running stream, a short question behind it, and those who leave notice of it."""

from __future__ import annotations

import asyncio
import time
from statistics import median

from bench import prompts
from bench.result import Measured, Points, Row, Target
from bench.scenario import Plot, Scenario, Side
from bench.sse import Answer, Client, NoAnswer

_LONG = 1200
_LEAVE_S = 2.0
_BEHIND_S = 1.0
# Chunks of the running stream before the long prompt is sent.
_SETTLED = 10
# Long enough to outlast the long prompt on either side.
_ENDLESS = 2000


def _long(side: Side, number: int, *, max_tokens: int = 4, stream: bool = True) -> prompts.Body:
    return prompts.chat(prompts.text(side.model, _LONG, number), max_tokens=max_tokens, stream=stream)


async def _stall(side: Side, url: str, number: int) -> tuple[Answer, Points]:
    """The long prompt's answer; and for the running stream (seconds since the long prompt was sent, tokens so far)."""
    client = Client(url)
    settled = asyncio.Event()
    arrivals: list[float] = []

    def arrived(answer: Answer) -> None:
        arrivals.append(time.perf_counter())
        if len(answer.times) >= _SETTLED:
            settled.set()

    counting = "Count from one to one thousand in words, one number per line, and never stop."
    stream = asyncio.create_task(client.ask(prompts.chat(f"{number}. {counting}", max_tokens=_ENDLESS), arrived))
    await asyncio.wait((stream, asyncio.create_task(settled.wait())), return_when=asyncio.FIRST_COMPLETED)
    sent = time.perf_counter()
    answer = await client.ask(_long(side, number))
    # The stall may end with the long prompt's own first token: wait for the stream's next.
    so_far = len(arrivals)
    while len(arrivals) == so_far and not stream.done():
        await asyncio.sleep(0.05)
    if stream.done():
        raise NoAnswer(f"The running stream ended before the long prompt was read: {stream.exception() or 'early'}.")
    stream.cancel()
    await asyncio.wait((stream,))
    return answer, tuple((arrival - sent, count) for count, arrival in enumerate(arrivals, 1))


def _longest_gap(points: Points) -> float:
    """From the last chunk before the long prompt on."""
    times = [at for at, _ in points]
    later = [at for at in times if at > 0]
    before = [at for at in times if at <= 0][-1:]
    edges = before + later
    return max(b - a for a, b in zip(edges, edges[1:], strict=False))


def _gap(side: Side) -> Measured:
    with side.server() as server:
        rounds = [asyncio.run(_stall(side, server.url, number)) for number in range(side.repeat)]
    values = {
        "gap": median(_longest_gap(points) for _, points in rounds),
        "long": median(answer.ttft for answer, _ in rounds),
    }
    return Measured(values, tuple(answer.text for answer, _ in rounds), {"stall": rounds[0][1]})


async def _behind(side: Side, url: str, number: int) -> Answer:
    client = Client(url)
    long = asyncio.create_task(client.ask(_long(side, number)))
    await asyncio.sleep(_BEHIND_S)
    short = await client.ask(prompts.chat(prompts.question(number), max_tokens=8))
    await long
    return short


def _short(side: Side) -> Measured:
    with side.server() as server:
        answers = [asyncio.run(_behind(side, server.url, number)) for number in range(side.repeat)]
    return Measured({"ttft": median(a.ttft for a in answers)}, tuple(a.text for a in answers))


async def _after_leaving(side: Side, url: str, number: int, *, stream: bool) -> Answer:
    client = Client(url)
    if await client.leave(_long(side, number, max_tokens=64, stream=stream), _LEAVE_S):
        raise NoAnswer(f"The long prompt was answered within {_LEAVE_S} s: nothing was left.")
    return await client.ask(prompts.chat(prompts.question(number), max_tokens=8))


def _leaving(side: Side) -> Measured:
    answers: dict[str, list[Answer]] = {"streaming": [], "whole": []}
    for number in range(side.repeat):
        for name, given in answers.items():
            # A server of its own each time: what one left running must not count for the next.
            with side.server() as server:
                given.append(asyncio.run(_after_leaving(side, server.url, number, stream=name == "streaming")))
    values = {name: median(a.ttft for a in given) for name, given in answers.items()}
    return Measured(values, tuple(a.text for given in answers.values() for a in given))


GAP = Scenario(
    "running_stream",
    f"A stream runs, and a prompt of {_LONG:,} tokens arrives",
    (
        Row("gap", "longest gap in the running stream", "s", Target(0.1)),
        Row("long", "time to first token of the long prompt", "s"),
    ),
    _gap,
    plots=(Plot("stall", "A running stream while a long prompt arrives at 0", "seconds", "tokens received"),),
)
SHORT = Scenario(
    "short_behind_long",
    f"A short question {_BEHIND_S:g} s behind a prompt of {_LONG:,} tokens",
    (Row("ttft", "time to first token of the short question", "s", Target(0.15)),),
    _short,
)
LEAVING = Scenario(
    "client_leaves",
    f"A client leaves {_LEAVE_S:g} s into a prompt of {_LONG:,} tokens",
    (
        Row("streaming", "streaming: the next request's first token", "s", Target(0.15)),
        Row("whole", "not streaming: the next request's first token", "s", Target(0.15)),
    ),
    _leaving,
)
