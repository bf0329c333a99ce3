"""What a request waits for, and how far its prompt has been read, as data: the `prompt_progress` of every dialect.

The first four names are llama-server's. HTTP process.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from server.chat.deltas import ModelPending, PrefillProgress


class PromptProgress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`total` tokens of the prompt, 0 before it has any; `cache` of them were read before, `processed` are read, those
    of the cache included. `time_ms` since its prefill began.

    `state`: fetching, building, loading, unloading (another model makes room), queued or prefill. `diverged_at`: the
    first token that no earlier prompt had. `queue_place`: 1 is next. Bytes are those of a transfer, a build or a load.
    """

    total: int
    cache: int
    processed: int
    time_ms: int
    state: str
    diverged_at: int | UnsetType = UNSET
    text: str | UnsetType = UNSET
    queue_place: int | UnsetType = UNSET
    bytes_done: int | UnsetType = UNSET
    bytes_total: int | UnsetType = UNSET
    bytes_per_second: int | UnsetType = UNSET
    seconds_left: float | UnsetType = UNSET


def waiting(event: ModelPending, prompt_tokens: int) -> PromptProgress:
    rate, left = event.rate, event.seconds_left
    return PromptProgress(
        total=prompt_tokens,
        cache=0,
        processed=0,
        time_ms=0,
        state=event.state,
        text=event.text,
        queue_place=UNSET if event.place is None else event.place,
        bytes_done=UNSET if event.total is None else event.done,
        bytes_total=UNSET if event.total is None else event.total,
        bytes_per_second=UNSET if rate is None else round(rate),
        seconds_left=UNSET if left is None else round(left, 1),
    )


def reading(event: PrefillProgress) -> PromptProgress:
    return PromptProgress(
        total=event.total,
        cache=event.cached,
        processed=event.done,
        time_ms=round(event.seconds * 1000),
        state="prefill",
        diverged_at=UNSET if event.diverged_at is None else event.diverged_at,
    )


def prompt_text(event: PrefillProgress) -> str:
    """For a person who reads the comments of a stream."""
    return f"prompt {event.done} of {event.total} tokens"
