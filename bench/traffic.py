"""Mixed traffic for the soak: what a client may ask, and what became of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench import prompts
from bench.sse import Answer, Client

Outcome = Literal["answered", "refused", "busy", "failed", "left", "lost", "wrong"]
OUTCOMES: dict[Outcome, str] = {
    "answered": "requests answered whole",
    "refused": "bad requests refused with a 4xx",
    "busy": "requests turned away with a 503",
    "failed": "requests ended by an error of the engine",
    "left": "requests left by the client",
    "lost": "requests lost: no whole answer and no error",
    "wrong": "requests answered as they must not be",
}
# Longer than most windows, and read in a moment by the models of the soak.
_LONG = 600
# A machine that does other things as well is no fault of the server's.
_TIMEOUT_S = 300.0


@dataclass(slots=True)
class Tally:
    """What became of all requests, and in which ways they went wrong."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    complaints: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome, complaint: str = "") -> None:
        self.outcomes[outcome] += 1
        if outcome in ("lost", "wrong"):
            self.complaints[f"{outcome}: {complaint}"] += 1


class Traffic:
    """Many clients of one server. The same seed asks the same."""

    def __init__(self, url: str, model: Path, tally: Tally, seed: int = 0) -> None:
        self._client = Client(url, timeout=_TIMEOUT_S)
        self._model = model
        self._tally = tally
        self._draw = random.Random(seed)
        self._long = [prompts.text(model, _LONG, number) for number in range(4)]

    async def mixed(self, clients: int, seconds: float) -> None:
        """`clients` at once, each asking one thing after the other."""
        end = time.monotonic() + seconds

        async def one() -> None:
            while time.monotonic() < end:
                await self._something()

        await asyncio.gather(*(one() for _ in range(clients)))

    async def leavers(self, clients: int, after: float) -> None:
        """`clients` at once that leave `after` seconds into a long prompt."""
        await asyncio.gather(*(self._leave(self._long_question(), after) for _ in range(clients)))

    async def until_answered(self, limit: float) -> float | None:
        """Seconds until one small request is answered, asked again while the server is busy; None past `limit`."""
        start = time.monotonic()
        while time.monotonic() < start + limit:
            answer = await self._client.leave(prompts.chat("Hello.", max_tokens=4), start + limit - time.monotonic())
            if answer is not None and answer.whole:
                return time.monotonic() - start
            await asyncio.sleep(0.1)
        return None

    async def _something(self) -> None:
        kind = self._draw.random()
        if kind < 0.15:
            await self._bad()
        elif kind < 0.4:
            body = self._long_question() if self._draw.random() < 0.5 else self._short_question()
            # In the queue, in prefill or in decode, as it comes.
            await self._leave(body, self._draw.uniform(0.0, 1.5))
        else:
            body = self._long_question() if kind < 0.5 else self._short_question()
            await self._good(body)

    def _short_question(self) -> prompts.Body:
        stream, tokens = self._draw.random() < 0.7, self._draw.choice((1, 8, 40, 150))
        return prompts.chat(prompts.question(self._draw.randrange(10**6)), max_tokens=tokens, stream=stream)

    def _long_question(self) -> prompts.Body:
        """Half of them share a document, as a cache likes it."""
        document = self._draw.choice(self._long)
        if self._draw.random() < 0.5:
            document = f"{self._draw.randrange(10**6)}. {document}"
        stream = self._draw.random() < 0.7
        return prompts.chat(document, max_tokens=self._draw.choice((4, 60)), stream=stream)

    async def _good(self, body: prompts.Body) -> None:
        self._count(await self._client.attempt(body))

    async def _leave(self, body: prompts.Body, after: float) -> None:
        answer = await self._client.leave(body, after)
        if answer is None:
            self._tally.add("left")
        else:
            self._count(answer)

    def _count(self, answer: Answer) -> None:
        """What a good request came to."""
        if answer.whole:
            self._tally.add("answered")
        elif answer.lost or not answer.error:
            self._tally.add("lost", answer.lost or f"status {answer.status}, and the answer just stopped")
        elif answer.status == 503:
            self._tally.add("busy")
        elif answer.status == 200 or answer.status >= 500:
            self._tally.add("failed")
        else:
            self._tally.add("wrong", f"a good request got {answer.status}: {answer.error}")

    async def _bad(self) -> None:
        hello = [{"role": "user", "content": "Hello."}]
        bodies: tuple[prompts.Body, ...] = (
            {"messages": hello, "max_tokens": "many"},
            {"messages": hello, "model": "no-such-model"},
            {"messages": []},
            {"messages": hello, "temperature": -1, "stream": True},
            {"messages": [{"role": "user", "content": "far too long " * 20_000}]},
        )
        answer = await self._client.attempt(self._draw.choice(bodies))
        if 400 <= answer.status < 500:
            self._tally.add("refused")
        elif answer.status == 503:
            self._tally.add("busy")
        elif answer.lost:
            self._tally.add("lost", answer.lost)
        else:
            self._tally.add("wrong", f"a bad request got {answer.status}: {answer.error or answer.text}")
