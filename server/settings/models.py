"""Which models there are, where their files come from, and when they are in memory."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import ByteSize, Field, model_validator

from server.settings.section import Section, Size, UserPath

Acquire = Literal["fetch-or-build", "fetch", "build", "local"]
# The names of `chat/formats`, and the choice by the model's own template.
WireFormatName = Literal[
    "auto", "gemma4", "functiongemma", "harmony", "minimax-m2", "qwen3-coder", "glm", "hermes", "mistral", "llama3",
    "think", "plain",
]  # fmt: skip
_MAC_IDLE_S = 1800.0


class LifecycleSettings(Section):
    """When models are loaded and unloaded."""

    default_model: str = Field(
        "", description="Model id for requests that name none; empty means the first of [[models]]."
    )
    load_at_start: bool = Field(
        False, description="Load the default model when the server starts instead of at the first request."
    )
    idle_unload_s: float | None = Field(
        None,
        ge=0,
        description="Unload after this long without a request, to give memory back; 0 means never. When absent, 1800 "
        "on a Mac and never elsewhere.",
    )
    keep_awake: bool = Field(True, description="Whether a Mac may not fall asleep while requests run.")
    load_wait_s: float = Field(
        120, gt=0, description="How long a non-streaming request waits for a loading model before 503."
    )
    failed_retry_s: float = Field(
        30, ge=0, description="How long a failed model refuses requests before the next one tries again."
    )
    memory_headroom: Size = Field(
        ByteSize(512 * 10**6),
        ge=2**20,
        description="A model loads only if its weights and this, or as much again if that is less, fit in the memory "
        "available.",
    )
    memory_limit: Size = Field(
        ByteSize(0), ge=0, description="Memory a model may use; 0 means what the system reports as available."
    )

    @property
    def idle_s(self) -> float:
        """Seconds without a request before a model is unloaded; infinite for never."""
        if self.idle_unload_s is None:
            return _MAC_IDLE_S if sys.platform == "darwin" else math.inf
        return self.idle_unload_s or math.inf


class StorageSettings(Section):
    """Where models come from and are kept."""

    cache_dir: UserPath = Field(
        Path(platformdirs.user_cache_dir("configi")),
        description="Folder for what configi makes: models that it builds, prefixes, converted tokenizers.",
    )
    allow_download: bool = Field(True, description="false works offline, from what is already on this machine.")
    hub_timeout_s: float = Field(30, gt=0, description="Longest silence of the Hub before a retry.")


class ModelSettings(Section):
    """One [[models]] table: a model that requests may name."""

    id: str = Field(min_length=1, max_length=256, description="The name in /v1/models.")
    aliases: list[str] = Field([], description="Other names, with globs, that mean this model.")
    acquire: Acquire = Field("fetch-or-build", description="How its files are obtained.")
    fetch: str | None = Field(
        None, description="A ready MLX repository on the Hub, optionally @revision; or embedded:NAME."
    )
    build_from: str | None = Field(
        None, description="The unquantized repository, optionally @revision, or folder to build from."
    )
    policy: str = Field("config-i", description="The quantization policy of the build.")
    calibrate: bool | None = Field(
        None,
        description="Whether the build is calibrated: better at the same size, and far longer in the making. Absent: "
        "for config-i alone.",
    )
    build_memory_limit: Size | None = Field(
        None, ge=2**28, description="Resident memory that the build may use. Absent: 3 GB, and 8 GB to calibrate."
    )
    path: UserPath | None = Field(None, description='The MLX model folder, for acquire = "local".')
    wire_format: WireFormatName = Field(
        "auto", description="How the model writes thoughts and tool calls; auto asks its chat template."
    )
    context_length: int | None = Field(
        None,
        ge=16,
        description="Longest prompt plus answer in tokens; what the model was made for when absent. More than that is "
        "served with a warning in the log.",
    )

    @property
    def calibrates(self) -> bool:
        # At the 2 and 3 bits of config-i rounding alone is not worth serving.
        return self.policy == "config-i" if self.calibrate is None else self.calibrate

    @model_validator(mode="after")
    def _has_a_source(self) -> ModelSettings:
        needs: dict[str, tuple[object, str]] = {
            "local": (self.path, "path"),
            "fetch": (self.fetch, "fetch"),
            "build": (self.build_from, "build_from"),
            "fetch-or-build": (self.fetch or self.build_from, "fetch or build_from"),
        }
        value, name = needs[self.acquire]
        if not value:
            raise ValueError(f'model "{self.id}" has acquire = "{self.acquire}" and needs {name}')
        return self


def default_models() -> list[ModelSettings]:
    return [
        ModelSettings(
            id="gemma-4-26b-a4b-config-i",
            aliases=["gpt-*", "claude-*"],
            acquire="fetch-or-build",
            fetch="thetom-ai/Gemma-4-26B-A4B-it-ConfigI-MLX",
            build_from="google/gemma-4-26b-a4b-it",
            calibrate=True,
        )
    ]
