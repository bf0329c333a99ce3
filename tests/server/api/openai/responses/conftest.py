"""The OpenAI SDK as the client of a server whose events are scripted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.support.scripted_events import ScriptedEvents
from tests.support.scripted_service import Running


@pytest.fixture
def client(up: tuple[Running, ScriptedEvents]) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{up[0].url}/v1", api_key="any", max_retries=0, timeout=20) as sdk:
        yield sdk
