"""From a call, however its protocol words it, to the request for a generation. HTTP process."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request

from server.chat.conversation import Client, GenerationOptions, GenerationRequest, Prompt
from server.settings.types import Settings


@dataclass(frozen=True, slots=True)
class Caller:
    """A request's id, and who sent it."""

    request_id: str
    client: Client


def caller(request: Request, settings: Settings, cache_salt: str = "") -> Caller:
    """As the guard has found. `cache_salt`: the client's own, which keeps prefixes apart within what it may share."""
    state = request.scope.get("state") or {}
    client = str(state.get("client", ""))
    salt = "" if settings.shares_prefixes else client
    if cache_salt:
        salt = f"{salt}\0{cache_salt}"
    return Caller(str(state.get("request_id") or uuid.uuid4().hex), Client(client, salt))


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
