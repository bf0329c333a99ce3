"""Conversations as tokens, with the engine that reads them and the raw model that says what it must answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from pydantic import ByteSize

from server.engine_client.client import EngineClient
from server.engine_client.protocol import Boundary, Generate, Kind, Prefilled, Sampling, Tokens
from server.settings.types import CacheSettings, EngineSettings, Settings, StorageSettings
from tests.support.engines import running_engine

GREEDY = Sampling(seed=0, temperature=0)
ANSWER = 8


@dataclass
class Model:
    folder: Path
    raw: Any

    def greedy(self, prompt: Sequence[int]) -> list[int]:
        """The raw model's answer without any cache: drafted with one, then held against one pass over all of it."""
        cache = make_prompt_cache(self.raw)
        made = [_likeliest(self.raw(mx.array([list(prompt)]), cache=cache)[0, -1:])[0]]
        while len(made) < ANSWER:
            made += _likeliest(self.raw(mx.array([made[-1:]]), cache=cache)[0])
        assert _likeliest(self.raw(mx.array([[*prompt, *made[:-1]]]))[0, len(prompt) - 1 :]) == made
        return made


def _likeliest(logits: mx.array) -> list[int]:
    """The likeliest token at each position of `logits`, shape (positions, vocabulary)."""
    tokens: Any = mx.argmax(logits, axis=-1).tolist()
    return list(tokens)


@dataclass
class Talk:
    """A conversation as tokens: each message ends at a boundary."""

    rng: random.Random
    tokens: list[int] = field(default_factory=list)
    boundaries: list[Boundary] = field(default_factory=list)

    def say(self, kind: Kind, words: int | list[int]) -> Talk:
        self.tokens = [*self.tokens, *(self._words(words) if isinstance(words, int) else words)]
        self.boundaries = [*self.boundaries, Boundary(len(self.tokens), kind)]
        return self

    def asked(self) -> tuple[list[int], list[Boundary]]:
        """With what opens the reply and is not in the history later."""
        return [*self.tokens, 5, 6, 7], self.boundaries

    def _words(self, count: int) -> list[int]:
        return [self.rng.randrange(10, 448) for _ in range(count)]


def new_talk(seed: int) -> Talk:
    return Talk(random.Random(seed)).say("system", 50).say("user", 60)


def generate(prompt: Sequence[int], boundaries: Sequence[Boundary] = (), **fields: Any) -> Generate:
    fields = {"id": 0, "max_tokens": ANSWER, "stop_tokens": [], "sampling": GREEDY} | fields
    return Generate(prompt=list(prompt), boundaries=list(boundaries), **fields)


async def ask(engine: EngineClient, talk: Talk, salt: str = "") -> tuple[list[int], int]:
    """The answer, and how many prompt tokens were not read again."""
    made: list[int] = []
    cached = 0
    async for _, event in engine.generate([generate(*talk.asked(), cache_salt=salt)]):
        if isinstance(event, Tokens):
            made += event.tokens
        elif isinstance(event, Prefilled):
            cached = max(cached, event.cached)
    return made, cached


def talk_settings(disk: Path | None = None, **cache: int) -> Settings:
    sizes = {name: ByteSize(size) for name, size in ({"disk_limit": 10**9 if disk else 0} | cache).items()}
    return Settings(
        engine=EngineSettings(prefill_step_tokens=16),
        cache=CacheSettings(**sizes),
        storage=StorageSettings(cache_dir=disk or Path("unused")),
    )


def engine_for(
    folder: Path, disk: Path | None = None, **cache: int
) -> contextlib.AbstractAsyncContextManager[EngineClient]:
    return running_engine(folder, talk_settings(disk, **cache))


def with_engine(model: Model, test: Callable[[EngineClient], Coroutine[Any, Any, None]], **cache: int) -> None:
    async def run() -> None:
        async with engine_for(model.folder, **cache) as engine:
            await test(engine)

    asyncio.run(run())
