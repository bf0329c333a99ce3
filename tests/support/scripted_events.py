"""A `Service` that answers with the events that a test gives it, for dialects that have more to render than text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from server.chat.conversation import Conversation, GenerationRequest
from server.chat.deltas import Event, Finish, ReasoningDelta, Started, TextDelta, ToolCallDelta, Usage
from tests.support.scripted_service import MODEL, ScriptedService

PLAIN: tuple[Event, ...] = (TextDelta(0, "Paris."), Finish(0, "stop", 2), Usage(30, 2, 12))
# A thought, words, and a call whose arguments come in pieces.
THOUGHT_THEN_CALL: tuple[Event, ...] = (
    ReasoningDelta(0, "They want"),
    ReasoningDelta(0, " weather."),
    TextDelta(0, "Let me look."),
    ToolCallDelta(0, 0, "call_a", "weather", ""),
    ToolCallDelta(0, 0, arguments='{"place": '),
    ToolCallDelta(0, 0, arguments='"Paris"}'),
)
END: tuple[Event, ...] = (Finish(0, "tool_calls", 21), Usage(30, 21, 12, 4))


@dataclass
class ScriptedEvents(ScriptedService):
    """`script`: what comes behind `Started`. Errors are raised: those at its beginning one by one instead of it, each
    for one generation. `before`: what comes ahead of `Started`. `held`: wait for `go_on` behind it."""

    script: tuple[Event | Exception, ...] = PLAIN
    before: tuple[Event | Exception, ...] = ()
    held: bool = False

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        if isinstance(self.script[0], Exception):
            error, self.script = self.script[0], self.script[1:] or PLAIN
            raise error
        for event in self.before:
            if isinstance(event, Exception):
                raise event
            yield event
        yield Started(MODEL, 30)
        if self.held:
            await asyncio.to_thread(self.go_on.wait, 10)
        for event in self.script:
            if isinstance(event, Exception):
                raise event
            yield event

    def says(self, *script: Event | Exception) -> None:
        self.script = script or PLAIN

    @property
    def asked(self) -> Conversation:
        """By the last request."""
        prompt = self.requests[-1].prompt
        assert isinstance(prompt, Conversation)
        return prompt
