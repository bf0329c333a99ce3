"""A long prompt arrives: what a running stream, a short question behind it, and those who leave notice of it."""

from __future__ import annotations

import asyncio
import itertools
import time
from functools import partial

from bench import prompts
from bench.peers import MODEL
from bench.result import Measured, Points, Row, Target
from bench.scenario import Plot, Scenario, Side, on_windows
from bench.sse import Answer, Client, NoAnswer
from server.settings.types import Settings

_LONG = 1200
_LEAVE_S = 2.0
_BEHIND_S = 1.0
STALL_TARGET_S = Settings().engine.decode_stall_target_ms / 1000
# Rapid-MLX lets a stream wait about so long.
_PEER_GAP_MS = 800
# Chunks of the running stream before the long prompt is sent.
_SETTLED = 10


def _long(side: Side, *, max_tokens: int = 4, stream: bool = True) -> prompts.Body:
    return prompts.chat(prompts.text(side.model, _LONG, side.number), max_tokens=max_tokens, stream=stream)


def _short(side: Side) -> prompts.Body:
    return prompts.chat(prompts.question(side.number), max_tokens=8)


async def _either(task: asyncio.Task[Answer], event: asyncio.Event) -> None:
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def longest_gap(points: Points) -> float:
    """Seconds between two tokens, from the last one before 0 on."""
    times = [at for at, _ in points]
    edges = [at for at in times if at <= 0][-1:] + [at for at in times if at > 0]
    return max(later - earlier for earlier, later in itertools.pairwise(edges))


def _gap(side: Side, target_ms: float | None = None) -> Measured:
    with side.server({} if target_ms is None else {"decode_stall_target_ms": target_ms}) as server:
        answer, points = asyncio.run(_stall(side, server.url, _long(side)))
    meanwhile = sum(0 < at <= answer.ttft for at, _ in points) / answer.ttft
    values = {"gap": longest_gap(points), "long": answer.ttft, "meanwhile": meanwhile}
    return Measured(values, (answer.text,), {"stall": points})


async def _behind_long(side: Side, url: str) -> Answer:
    client = Client(url, model=MODEL)
    long = asyncio.create_task(client.ask(_long(side)))
    await asyncio.sleep(_BEHIND_S)
    short = await client.ask(_short(side))
    await long
    return short


def _behind(side: Side) -> Measured:
    with side.server() as server:
        answer = asyncio.run(_behind_long(side, server.url))
    return Measured({"ttft": answer.ttft}, (answer.text,))


async def _after_leaving(side: Side, url: str, *, stream: bool) -> Answer:
    client = Client(url, model=MODEL)
    if await client.leave(_long(side, max_tokens=64, stream=stream), _LEAVE_S) is not None:
        raise NoAnswer(f"The long prompt was answered within {_LEAVE_S:g} s: nobody left.")
    return await client.ask(_short(side))


def _leaving(side: Side) -> Measured:
    answers: dict[str, Answer] = {}
    for name in ("streaming", "whole"):
        # A server of its own: what the first left running must not count for the second.
        with side.server() as server:
            answers[name] = asyncio.run(_after_leaving(side, server.url, stream=name == "streaming"))
    return Measured({name: a.ttft for name, a in answers.items()}, tuple(a.text for a in answers.values()))


async def _stall(side: Side, url: str, body: prompts.Body) -> tuple[Answer, Points]:
    """The answer to `body`; and for a stream that runs (seconds since `body` was sent, tokens so far)."""
    client = Client(url, model=MODEL)
    settled, moved = asyncio.Event(), asyncio.Event()
    arrivals: list[float] = []

    def arrived(answer: Answer) -> None:
        arrivals.append(time.perf_counter())
        moved.set()
        if len(answer.times) >= _SETTLED:
            settled.set()

    stream = asyncio.create_task(client.ask(prompts.endless(), arrived))
    await _either(stream, settled)
    sent = time.perf_counter()
    answer = await client.ask(body)
    # The stall may end with the answer's own last token: wait for the stream's next.
    moved.clear()
    await _either(stream, moved)
    if stream.done():
        raise NoAnswer(f"The running stream ended before the prompt was read: {stream.exception() or 'early'}.")
    stream.cancel()
    await asyncio.wait((stream,))
    return answer, tuple((arrival - sent, count) for count, arrival in enumerate(arrivals, 1))


def _restored(side: Side) -> Measured:
    """A conversation goes on behind a restart, beside a stream."""
    with side.server() as server:
        first = asyncio.run(Client(server.url, model=MODEL).ask(_long(side)))
    with side.server() as server:
        turns = (prompts.text(side.model, _LONG, side.number), first.text, "Say that in other words.")
        body = prompts.chat(*turns, max_tokens=4)
        answer, points = asyncio.run(_stall(side, server.url, body))
    values = {"gap": longest_gap(points), "ttft": answer.ttft, "cached": float(answer.cached_tokens)}
    return Measured(values, (answer.text,))


_READ = (
    Row("long", "time to first token of the long prompt", "s", Target(1.0)),
    Row("meanwhile", "the running stream until then", "tok/s"),
)
GAP = Scenario(
    "running_stream",
    f"A stream runs, and a prompt of {_LONG:,} tokens arrives",
    (
        Row("gap", "longest gap in the running stream", "s", Target(0.8)),
        Row("gap", "the same, by the target of the settings", "s", Target(STALL_TARGET_S, absolute=True)),
        *_READ,
    ),
    _gap,
    model="endless",
    plots=(Plot("stall", "A running stream while a long prompt arrives at 0", "seconds", "tokens received"),),
)
EQUAL_GAP = Scenario(
    "equal_gap",
    f"The same, where configi may let the stream wait {_PEER_GAP_MS} ms",
    (Row("gap", "longest gap in the running stream", "s", Target(1.0)), *_READ),
    partial(_gap, target_ms=_PEER_GAP_MS),
    model="endless",
    kinds=("Rapid-MLX", "configi"),
)
BEHIND = Scenario(
    "short_behind_long",
    f"A short question {_BEHIND_S:g} s behind a prompt of {_LONG:,} tokens",
    (Row("ttft", "the short question: time to first token", "s", Target(0.6)),),
    _behind,
)
LEAVING = Scenario(
    "client_leaves",
    f"A client leaves {_LEAVE_S:g} s into a prompt of {_LONG:,} tokens",
    (
        Row("streaming", "streaming: the next request's first token", "s", Target(0.1)),
        Row("whole", "not streaming: the next request's first token", "s", Target(0.1)),
    ),
    _leaving,
)
RESTORED = Scenario(
    "restored_beside",
    f"A stream runs, and a prefix of {_LONG:,} tokens is restored from disk",
    (
        Row("gap", "longest gap in the running stream", "s", Target(STALL_TARGET_S, absolute=True)),
        Row("ttft", "time to first token of the restored prompt", "s"),
        Row("cached", "tokens from the cache", "", Target(_LONG, at_least=True, absolute=True)),
    ),
    _restored,
    model="endless",
    kinds=("configi",),
)
SLIDING_GAP, SLIDING_BEHIND, SLIDING_RESTORED = on_windows(GAP), on_windows(BEHIND), on_windows(RESTORED)
SLIDING_EQUAL_GAP = on_windows(EQUAL_GAP)
