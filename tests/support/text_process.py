"""The text process of a tiny model, opened and closed within a bound; what is asked of it, and what a template does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from server.chat.conversation import Conversation
from server.chat.parts import Message
from server.settings.types import LimitSettings
from server.text.client import TextProcess
from tests.support.tiny_model import CHAT_TEMPLATE, write_tiny_model

PATIENT = LimitSettings()
GOOD = Conversation((Message.plain("user", "Hello"),))
# What `trigger` in a message makes of a template that is otherwise a good one.
ON_TRIGGER = "{%% if messages[-1]['content'] == 'trigger' %%}%s{%% endif %%}" + CHAT_TEMPLATE.replace("%", "%%")
BAD = Conversation((Message.plain("user", "trigger"),))


def model(folder: Path, on_trigger: str = "") -> Path:
    write_tiny_model(folder)
    (folder / "chat_template.jinja").write_text(ON_TRIGGER % on_trigger)
    return folder


@asynccontextmanager
async def opened(folder: Path, limits: LimitSettings = PATIENT) -> AsyncIterator[TextProcess]:
    text = await TextProcess.open(folder, None, limits)
    try:
        yield text
    finally:
        await text.close()


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main()

    asyncio.run(bounded())
