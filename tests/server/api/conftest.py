"""A server whose events are scripted, for the dialects that an SDK speaks with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.settings.types import Settings
from tests.support.scripted_events import ScriptedEvents
from tests.support.scripted_service import Running, running


@pytest.fixture(scope="module")
def up() -> Iterator[tuple[Running, ScriptedEvents]]:
    service = ScriptedEvents(Settings())
    with running(service, guarded=True) as server:
        yield server, service


@pytest.fixture
def service(up: tuple[Running, ScriptedEvents]) -> ScriptedEvents:
    up[1].says()
    up[1].held = False
    return up[1]
