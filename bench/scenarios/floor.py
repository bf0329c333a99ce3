"""The distance to the floor: mlx-lm without a server, against the number of streams and the length of the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from bench import prompts, raw
from bench.peers import MODEL
from bench.result import Measured, Row
from bench.scenario import Plot, Scenario, Side
from bench.scenarios.streams import TOKENS, together
from bench.sse import Answer, Client

_STREAMS = (1, 2, 4, 8)
_LENGTHS = (128, 256, 512, 1024, 2048)


def _measured(name: str, steps: Sequence[int], figures: Sequence[float], texts: Sequence[str] = ()) -> Measured:
    """`figures`: one for each of `steps`."""
    points = tuple(zip(steps, figures, strict=True))
    return Measured({str(step): value for step, value in points}, tuple(texts), {name: points})


def _first_story(side: Side, streams: int) -> int:
    """No story is asked for twice."""
    return 1000 * side.number + 10 * streams


def _throughput(side: Side) -> Measured:
    with side.server() as server:
        rounds = [asyncio.run(together(server.url, streams, _first_story(side, streams))) for streams in _STREAMS]
    texts = [answer.text for answers, _ in rounds for answer in answers]
    return _measured("throughput", _STREAMS, [rate for _, rate in rounds], texts)


def _throughput_floor(side: Side) -> Measured:
    stories = [[prompts.story(_first_story(side, streams) + i) for i in range(streams)] for streams in _STREAMS]
    requests = [[prompts.chat(story, max_tokens=TOKENS) for story in together] for together in stories]
    return _measured("throughput", _STREAMS, [batch.rate for batch in raw.batches(side.model, requests)])


def _documents(side: Side) -> list[prompts.Body]:
    texts = (prompts.text(side.model, length, 10_000 * side.number + length) for length in _LENGTHS)
    return [prompts.chat(text, max_tokens=2) for text in texts]


def _ttft(side: Side) -> Measured:
    async def ask(url: str) -> list[Answer]:
        return [await Client(url, model=MODEL).ask(body) for body in _documents(side)]

    with side.server() as server:
        answers = asyncio.run(ask(server.url))
    return _measured("ttft", _LENGTHS, [a.ttft for a in answers], [a.text for a in answers])


def _ttft_floor(side: Side) -> Measured:
    batches = raw.batches(side.model, [[body] for body in _documents(side)])
    return _measured("ttft", _LENGTHS, [batch.ttft[0] for batch in batches])


def _rows(steps: Sequence[int], label: Callable[[int], str], unit: str) -> tuple[Row, ...]:
    return tuple(Row(str(step), label(step), unit) for step in steps)


THROUGHPUT = Scenario(
    "throughput",
    f"Tokens a second against the number of streams, {TOKENS} tokens each",
    _rows(_STREAMS, lambda n: f"{n} stream{'s' if n > 1 else ''}, all together", "tok/s"),
    _throughput,
    floor=_throughput_floor,
    plots=(Plot("throughput", "Tokens a second of all streams together", "streams", "tokens a second"),),
)
TTFT = Scenario(
    "prompt_length",
    "Time to first token against the length of the prompt",
    _rows(_LENGTHS, lambda n: f"{n:,} tokens: time to first token", "s"),
    _ttft,
    floor=_ttft_floor,
    plots=(Plot("ttft", "Time to first token, nothing cached", "tokens in the prompt", "seconds"),),
)
