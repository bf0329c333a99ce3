"""An engine in this process, taken step by step: to the end of its work, or to an event, and never for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from server.engine.engine import Engine
from server.engine_client.protocol import EngineEvent, Tokens

# Many times what any test needs.
_MOST_STEPS = 20_000


def steps(engine: Engine) -> Iterator[list[EngineEvent]]:
    """What each step says, until there is nothing more to do."""
    for _ in range(_MOST_STEPS):
        if not engine.busy:
            return
        yield engine.step()
    raise AssertionError("the engine does not come to an end")


def finish(engine: Engine) -> list[EngineEvent]:
    return [event for events in steps(engine) for event in events]


def until(engine: Engine, is_last: Callable[[EngineEvent], bool]) -> list[EngineEvent]:
    """Its events, up to the step with the first that is so."""
    told: list[EngineEvent] = []
    for events in steps(engine):
        told += events
        if any(map(is_last, events)):
            return told
    raise AssertionError(f"it never came; the last events: {told[-3:]}")


def a(kind: type, id: int | None = None) -> Callable[[EngineEvent], bool]:
    """Whether an event is of this kind, and of that request where one is given."""
    return lambda event: isinstance(event, kind) and id in (None, getattr(event, "id", None))


def tokens_of(events: list[EngineEvent], id: int) -> list[int]:
    return [token for event in events if isinstance(event, Tokens) and event.id == id for token in event.tokens]
