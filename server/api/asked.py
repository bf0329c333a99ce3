"""From a call, however its protocol words it, to the request for a generation. HTTP process."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request

from server.api.openai.answer import caller
from server.chat.conversation import GenerationOptions, GenerationRequest, Prompt
from server.settings.types import Settings


class GenerationCall(Protocol):
    """What the calls of all protocols have. A client of a stream sees what it waits for, and so may wait longer."""

    @property
    def model(self) -> str | None: ...
    @property
    def options(self) -> GenerationOptions: ...
    @property
    def stream(self) -> bool: ...
    @property
    def cache_salt(self) -> str: ...
    @property
    def keep_alive_s(self) -> float | None: ...


def generation(
    request: Request, settings: Settings, call: GenerationCall, prompt: Prompt, notes: tuple[str, ...] = ()
) -> GenerationRequest:
    who = caller(request, settings, call.cache_salt)
    return GenerationRequest(
        who.request_id,
        call.model,
        prompt,
        call.options,
        who.client,
        wait_for_model=call.stream,
        keep_alive_s=call.keep_alive_s,
        notes=notes,
    )
