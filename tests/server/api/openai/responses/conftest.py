"""A server whose events are scripted, and the OpenAI SDK as its client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

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


@pytest.fixture
def client(up: tuple[Running, ScriptedEvents]) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{up[0].url}/v1", api_key="any", max_retries=0, timeout=20) as sdk:
        yield sdk
