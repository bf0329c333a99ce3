"""What the engine sends for questions about one prompt, as their answer. HTTP process."""

from __future__ import annotations

from collections.abc import Callable

from server.chat.deltas import Decided, Usage
from server.chat.encoded import EncodedInquiry
from server.engine_client.client import EngineStream
from server.engine_client.protocol import OptionsScored, Prefilled
from server.errors import EngineFailed


async def decided(stream: EngineStream, model: str, inquiry: EncodedInquiry, on_slot: Callable[[], None]) -> Decided:
    """`on_slot`: the request has a slot."""
    logprobs: list[list[float]] | None = None
    cached = 0
    async for _, event in stream:
        match event:
            case Prefilled():
                on_slot()
                cached = max(cached, event.cached)
            case OptionsScored():
                logprobs = event.logprobs
    if logprobs is None:
        raise EngineFailed("The engine ended before the questions were answered.")
    tokens = len(inquiry.ids) + sum(len(question.ids) for question in inquiry.questions)
    return Decided(model, logprobs, Usage(tokens, 0, cached))
