"""The real engine process, through the supervisor and its client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from server.engine_client.client import EngineClient
from server.engine_client.supervisor import Supervisor
from server.settings.types import Settings

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
