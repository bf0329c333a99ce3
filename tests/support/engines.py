"""The real engine process, through the supervisor and its client."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from server.engine_client.client import EngineClient
from server.engine_client.supervisor import Supervisor
from server.settings.types import Settings


@contextlib.asynccontextmanager
async def running_engine(model: Path, settings: Settings, memory_limit: int = 0) -> AsyncIterator[EngineClient]:
    supervisor = Supervisor(settings)
    try:
        yield await supervisor.start(model, memory_limit)
    finally:
        await supervisor.stop()
