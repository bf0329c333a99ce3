"""An engine in this process, taken step by step to the end of its work."""

from __future__ import annotations

from server.engine.engine import Engine
from server.engine_client.protocol import EngineEvent, Tokens


def finish(engine: Engine) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    while engine.busy:
        events += engine.step()
    return events


def tokens_of(events: list[EngineEvent], id: int) -> list[int]:
    return [token for event in events if isinstance(event, Tokens) and event.id == id for token in event.tokens]
