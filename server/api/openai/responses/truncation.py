"""`truncation: "auto"`: the oldest turns make room when a conversation does not fit into the context. HTTP process."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from itertools import takewhile

import msgspec

from server.api.service import Service
from server.chat.conversation import Conversation, GenerationRequest
from server.chat.deltas import Event, Started
from server.errors import ContextLengthExceeded

# Of the turns that are left at each try: few tries, and not much more lost than had to be.
_SHARE = 8


async def generate(service: Service, request: GenerationRequest, truncate: bool) -> AsyncGenerator[Event, None]:
    """Raises ContextLengthExceeded when not even the last turn fits."""
    while True:
        started = False
        try:
            async with aclosing(service.generate(request)) as events:
                async for event in events:
                    started = started or isinstance(event, Started)
                    yield event
            return
        except ContextLengthExceeded:
            shorter = shortened(request.prompt) if isinstance(request.prompt, Conversation) else None
            if started or not truncate or shorter is None:
                raise
            request = replace(request, prompt=shorter)


def shortened(conversation: Conversation) -> Conversation | None:
    """Without its oldest turns, up to the next one that a user begins; None when that is the only one."""
    system = tuple(takewhile(lambda message: message.role == "system", conversation.messages))
    turns = conversation.messages[len(system) :]
    begins = [index for index, message in enumerate(turns) if message.role == "user" and index >= len(turns) / _SHARE]
    if not begins or begins[0] == 0:
        return None
    return msgspec.structs.replace(conversation, messages=(*system, *turns[begins[0] :]))
