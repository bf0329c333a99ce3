"""The real engine process, through the supervisor and its client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ByteSize

from server.engine_client.client import EngineClient
from server.engine_client.protocol import Generate, Sampling, Tokens
from server.engine_client.supervisor import Supervisor
from server.settings.types import CacheSettings, EngineSettings, Settings

GREEDY = Sampling(seed=0, temperature=0)
PROMPT = [70, 80, 90, 100, 110]
RunWith = Callable[[Callable[[EngineClient], Coroutine[Any, Any, None]]], None]


@contextlib.asynccontextmanager
async def running_engine(model: Path, settings: Settings, memory_limit: int = 0) -> AsyncIterator[EngineClient]:
    supervisor = Supervisor(settings)
    try:
        yield await supervisor.start(model, memory_limit)
    finally:
        await supervisor.stop()


@contextlib.contextmanager
def kept_engine(model: Path, settings: Settings, memory_limit: int = 0) -> Iterator[RunWith]:
    """One engine for many tests, each called with its client on the loop that the engine keeps.

    A start costs more CPU than most tests; only those about the start, the end or the settings need one of their own.
    """
    supervisor = Supervisor(settings)
    with asyncio.Runner() as runner:
        engine = runner.run(supervisor.start(model, memory_limit))
        try:
            yield lambda test: runner.run(test(engine))
        finally:
            runner.run(supervisor.stop())


def engine_settings(**fields: Any) -> Settings:
    return Settings(engine=EngineSettings(**fields), cache=CacheSettings(disk_limit=ByteSize(0)))


def generate(prompt: Sequence[int] = PROMPT, sampling: Sampling = GREEDY, **fields: Any) -> Generate:
    fields = {"max_tokens": 16, "stop_tokens": []} | fields
    return Generate(id=0, prompt=list(prompt), sampling=sampling, **fields)


async def tokens(engine: EngineClient, *requests: Generate) -> list[list[int]]:
    made: list[list[int]] = [[] for _ in requests]
    with contextlib.closing(engine.generate(requests)) as stream:
        async for index, event in stream:
            if isinstance(event, Tokens):
                made[index] += event.tokens
    return made
