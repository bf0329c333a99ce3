"""The settings as types: every number a user may want to change, with its unit, and one line that says why.

`config.toml` and `docs/settings.md` are compared with this file by a test. `loading.py` fills it in.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from server.settings import keys, names
from server.settings.chip import defaults_here

Acquire = Literal["fetch-or-build", "fetch", "build", "local"]
# The names of `chat/formats`, and the choice by the model's own template.
WireFormatName = Literal[
    "auto", "gemma4", "functiongemma", "harmony", "minimax-m2", "qwen3-coder", "glm", "hermes", "mistral", "llama3",
    "think", "plain",
]  # fmt: skip
_MAC_IDLE_S = 1800.0
# A path as people write it, with ~.
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ServerSettings(Section):
    """The HTTP side."""

    host: str = Field(
        "127.0.0.1", description="Address to listen on; localhost is both of loopback's, any other needs a key."
    )
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0 lets the system choose one.")
    api_key: SecretStr | None = Field(None, description="Bearer token that clients must send; required off loopback.")
    api_keys: dict[str, SecretStr] = Field(
        {}, description="More keys, by the names of their clients; a key may be given as sha256:HEX."
    )
    allowed_hosts: list[str] = Field(
        [], description="Host names answered beside loopback names and `host`; stops DNS rebinding."
    )
    allowed_origins: list[str] = Field(
        [],
        description='Origins of pages that may call the API; "chrome-extension://*" is any extension, "*" any page.',
    )
    local_origins: bool = Field(
        True, description="Whether loopback pages, on any port, and pages of desktop apps may call unlisted."
    )
    max_body: ByteSize = Field(ByteSize(8 * 10**6), ge=1024, description="Largest request body; larger is 413.")
    body_budget: ByteSize = Field(
        ByteSize(64 * 10**6),
        ge=0,
        description="Request bodies on their way in, of all clients together; beyond is 503.",
    )
    header_timeout_s: float = Field(10, gt=0, description="Time to send a request's headers; stops slowloris clients.")
    body_timeout_s: float = Field(30, gt=0, description="Time to send a request's body; then 408.")
    sse_write_timeout_s: float = Field(
        30, gt=0, description="How long a stream waits for a reader that stalls before its slot is freed."
    )
    sse_ping_s: float = Field(
        15, gt=0, description="Longest silence in a stream; a comment keeps proxies from closing it."
    )
    shutdown_grace_s: float = Field(
        10, ge=0, description="After SIGTERM, how long running streams may finish before an error event."
    )

    @field_validator("api_key")
    @classmethod
    def _can_be_sent(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None:
            keys.check_key(key)
        return key

    @field_validator("api_keys")
    @classmethod
    def _can_all_be_sent(cls, named: dict[str, SecretStr]) -> dict[str, SecretStr]:
        keys.check_named(named)
        return named

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, listed: list[str]) -> list[str]:
        names.check_hosts(listed)
        return listed

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, listed: list[str]) -> list[str]:
        names.check_origins(listed)
        return listed

    @property
    def key_digests(self) -> dict[str, bytes]:
        """The sha256 of each key by its client's name; empty when the server is open."""
        return keys.digests(self.api_key, self.api_keys)

    @property
    def own_key(self) -> str | None:
        """What this machine's own commands send."""
        return keys.sendable(self.api_key, self.api_keys)


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
        64, ge=0, description="Requests that may wait for a slot; the next one is a 503 with Retry-After."
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
    restart_limit: int = Field(3, ge=0, description="Engine failures in a row before the model is reported as failed.")
    restart_backoff_s: float = Field(
        1, ge=0, description="Wait before the first restart; doubles with each failure in a row."
    )


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
    memory_headroom: ByteSize = Field(
        ByteSize(512 * 10**6),
        ge=2**20,
        description="A model loads only if its weights and this, or as much again if that is less, fit in the memory "
        "available.",
    )
    memory_limit: ByteSize = Field(
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
        description="Models that configi builds itself are kept here.",
    )
    allow_download: bool = Field(True, description="false works offline, from what is already on this machine.")
    hub_timeout_s: float = Field(30, gt=0, description="Longest silence of the Hub before a retry.")


class CacheSettings(Section):
    """The KV cache of prompts that were read before, so that the next turn of a conversation reads only what is new."""

    memory_limit: ByteSize = Field(
        ByteSize(4 * 10**9), ge=0, description="Memory for prefixes, if the running requests leave it; 0 keeps none."
    )
    disk_limit: ByteSize = Field(
        ByteSize(10 * 10**9),
        ge=0,
        description="Disk for prefixes, which survive restarts there and hold prompts; 0 keeps none.",
    )
    disk_hourly_limit: ByteSize = Field(
        ByteSize(4 * 10**9), ge=0, description="Prefixes written to disk in an hour at most: writing wears it."
    )
    share: Literal["auto", "all", "key"] = Field(
        "auto", description="Who finds whose prefixes: auto is by key where several are configured, else all."
    )


class LimitSettings(Section):
    """Bounds on one request; beyond each is a 400 that says so."""

    max_messages: int = Field(2048, ge=1, description="Messages in one conversation.")
    max_json_depth: int = Field(64, ge=4, description="Nesting of the JSON body; deeper crashes parsers.")
    max_json_items: int = Field(
        400_000, ge=1, description="Values in the JSON body; a prompt of token ids has one for each."
    )
    max_json_containers: int = Field(50_000, ge=1, description="Lists and objects in the JSON body.")
    max_json_slow_numbers: int = Field(
        1000, ge=0, description="Numbers with an exponent or over 17 digits in the JSON body; parsers are slow on them."
    )
    max_stop: int = Field(16, ge=1, description="Stop strings; OpenAI allows 4, agents send more.")
    max_stop_chars: int = Field(256, ge=1, description="Length of one stop string.")
    max_logit_bias: int = Field(300, ge=1, description="Entries in logit_bias.")
    max_top_logprobs: int = Field(20, ge=0, description="Alternatives per token, as at OpenAI.")
    max_bad_words: int = Field(64, ge=0, description="Strings in bad_words.")
    max_tools: int = Field(512, ge=1, description="Tools per request; OpenAI allows 128, agents send more.")
    images: Literal["refuse", "omit"] = Field(
        "refuse", description='"omit" puts a note in the place of images, which no model here sees, instead of a 400.'
    )
    max_n: int = Field(8, ge=1, description="Choices per request; each takes a slot.")
    stored_responses: ByteSize = Field(
        ByteSize(64 * 10**6), ge=0, description="Memory for responses that clients may ask for again; 0 keeps none."
    )
    stored_response_age_s: float = Field(86400, gt=0, description="How long such a response is kept.")
    max_grammar_bytes: ByteSize = Field(
        ByteSize(10**6), ge=1024, description="A grammar: all tools and the shape of the answer, schemas included."
    )
    grammar_timeout_s: float = Field(
        5, gt=0, description="Longest time to make a grammar of a request's tools and the shape of its answer."
    )
    text_timeout_s: float = Field(
        15,
        gt=0,
        description="Longest processor time to render and tokenize one request; then it is a 400 and its process ends.",
    )
    text_memory_limit: ByteSize = Field(
        ByteSize(4 * 10**9),
        ge=2**28,
        description="Memory to render and tokenize one request, the tokenizer included.",
    )


class LogSettings(Section):
    """What is written to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity written.")
    format: Literal["auto", "text", "json"] = Field(
        "auto", description="auto is text on a terminal and one JSON object per line elsewhere."
    )
    prompts: bool = Field(False, description="true writes prompt and answer texts to the log.")


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
    calibrate: bool = Field(
        False, description="Whether the build is calibrated: better at the same size, and far longer in the making."
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


def _default_models() -> list[ModelSettings]:
    return [
        ModelSettings(
            id="gemma-4-26b-a4b-config-i",
            aliases=["gpt-*", "claude-*"],
            acquire="fetch-or-build",
            fetch="thetom-ai/Gemma-4-26B-A4B-it-ConfigI-MLX",
            build_from="google/gemma-4-26b-a4b-it",
        )
    ]


class Settings(Section):
    """All settings. Immutable; made once by `load_settings` and handed down."""

    server: ServerSettings = ServerSettings()
    engine: EngineSettings = EngineSettings()
    lifecycle: LifecycleSettings = LifecycleSettings()
    storage: StorageSettings = StorageSettings()
    cache: CacheSettings = CacheSettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()
    models: list[ModelSettings] = Field(default_factory=_default_models)

    @property
    def shares_prefixes(self) -> bool:
        """Among all clients; otherwise each key has its own."""
        share = self.cache.share
        return share == "all" or (share == "auto" and len(self.server.key_digests) < 2)
