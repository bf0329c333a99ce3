"""What the engine process is given: its work, and the memory and disk for prefixes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ByteSize, Field

from server.settings.chip import defaults_here
from server.settings.section import Section, Size


class EngineSettings(Section):
    """The model process."""

    max_concurrent: Annotated[int, AfterValidator(lambda n: n or defaults_here().max_concurrent)] = Field(
        0,
        ge=0,
        le=256,
        validate_default=True,
        description="Sequences decoded together, sharing the memory bandwidth; 0: by the chip, 4 up to M2, else 8.",
    )
    queue_limit: int = Field(
        64, ge=0, description="Sequences that may wait for a slot; the next request is a 503 with Retry-After."
    )
    queue_timeout_s: float = Field(
        300, gt=0, description="Longest wait for a slot before a 503; clients give up at 600 s."
    )
    prefill_step_tokens: int = Field(
        2048, ge=16, le=4096, description="Most prompt tokens in one forward pass; measured speed makes it fewer."
    )
    decode_stall_target_ms: float = Field(
        400, gt=0, description="Longest gap in a running stream while another's prompt is read."
    )
    command_buffer_ops: int = Field(
        0, ge=0, description="Metal operations given to the GPU at once; 0: by the chip, 1000 up to M4, else MLX's own."
    )
    command_buffer_mb: int = Field(
        0, ge=0, description="Megabytes that these may read; 0: by the chip, 400 up to M4, else MLX's own."
    )
    load_timeout_s: float = Field(600, gt=0, description="Longest time to load the weights into memory.")
    hang_timeout_s: float = Field(
        120, gt=0, description="No step for this long while work is waiting: the engine is killed as hung."
    )
    restart_limit: int = Field(
        3, ge=0, description="Engine failures in a row that a restart answers; the next one fails the model."
    )
    restart_backoff_s: float = Field(
        1, ge=0, description="Wait before the first restart; doubles with each failure in a row."
    )


class CacheSettings(Section):
    """The KV cache of prompts that were read before, so that the next turn of a conversation reads only what is new."""

    memory_limit: Size = Field(
        ByteSize(4 * 10**9), ge=0, description="Memory for prefixes, if the running requests leave it; 0 keeps none."
    )
    disk_limit: Size = Field(
        ByteSize(10 * 10**9),
        ge=0,
        description="Disk for prefixes, which survive restarts there and hold prompts; 0 keeps none.",
    )
    disk_hourly_limit: Size = Field(
        ByteSize(4 * 10**9), ge=0, description="Prefixes written to disk in an hour at most: writing wears it."
    )
    share: Literal["auto", "all", "key"] = Field(
        "auto", description="Who finds whose prefixes: auto is by key where several are configured, else all."
    )
