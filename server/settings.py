"""Typed settings: defaults < config.toml < environment < flags.

Every number a user may want to change is here, with its unit in its name and one line why in its
description; `config.toml` and `docs/settings.md` are held against this file by a test. An unknown key is an
error that suggests the right one, in the file as in the environment (`CONFIGI_<SECTION>__<KEY>`).
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from server import settings_errors
from server.errors import SetupError

Acquire = Literal["fetch-or-build", "fetch", "build", "local"]
# A path as people write it, with ~.
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ServerSettings(Section):
    """The HTTP side."""

    host: str = Field("127.0.0.1", description="Address to listen on; anything but loopback needs api_key.")
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0 lets the system choose one.")
    api_key: SecretStr | None = Field(None, description="Bearer token that clients must send; required off loopback.")
    allowed_hosts: list[str] = Field(
        [], description="Host names answered beside loopback names and `host`; stops DNS rebinding."
    )
    allowed_origins: list[str] = Field(
        [], description="Browser origins that may call the API; none by default, so no web page can."
    )
    max_body_bytes: int = Field(8 * 2**20, ge=1024, description="Largest request body; larger is 413.")
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
        """An empty key, as an unset variable of a script gives, must not open the server to others."""
        if key is not None:
            text = key.get_secret_value()
            if not text or not text.isprintable() or text != text.strip():
                raise ValueError("a key has at least one character, no space around it and no control characters")
        return key


class EngineSettings(Section):
    """The model process."""

    max_concurrent: int = Field(
        8, ge=1, le=256, description="Sequences decoded together; more share the same memory bandwidth."
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
    idle_unload_s: float = Field(
        0, ge=0, description="Unload after this long without a request, to give memory back; 0 means never."
    )
    load_wait_s: float = Field(
        120, gt=0, description="How long a non-streaming request waits for a loading model before 503."
    )
    failed_retry_s: float = Field(
        30, ge=0, description="How long a failed model refuses requests before the next one tries again."
    )
    memory_headroom: float = Field(
        1.15, ge=1, description="A model loads only if its weights times this fit in the memory available."
    )
    memory_limit_bytes: int = Field(
        0, ge=0, description="Memory a model may use; 0 means what the system reports as available."
    )


class StorageSettings(Section):
    """Where models come from and are kept."""

    cache_dir: UserPath = Field(
        Path(platformdirs.user_cache_dir("configi")),
        description="Models that configi makes itself are kept here.",
    )
    allow_download: bool = Field(True, description="false works offline, from what is already on this machine.")
    hub_timeout_s: float = Field(30, gt=0, description="Longest silence of the Hub before a retry.")


class CacheSettings(Section):
    """Prompts that were read before, so that the next turn of a conversation reads only what is new."""

    memory_limit: ByteSize = Field(
        ByteSize(4 * 10**9), ge=0, description="Memory for prefixes, if the running requests leave it; 0 keeps none."
    )
    disk_limit: ByteSize = Field(
        ByteSize(10 * 10**9),
        ge=0,
        description="Disk for prefixes, which survive restarts there and hold prompts; 0 keeps none.",
    )


class LimitSettings(Section):
    """Bounds on one request; beyond each is a 400 that says so."""

    max_messages: int = Field(2048, ge=1, description="Messages in one conversation.")
    max_json_depth: int = Field(64, ge=4, description="Nesting of the JSON body; deeper crashes parsers.")
    max_stop: int = Field(16, ge=1, description="Stop strings; OpenAI allows 4, agents send more.")
    max_stop_chars: int = Field(256, ge=1, description="Length of one stop string.")
    max_logit_bias: int = Field(300, ge=1, description="Entries in logit_bias.")
    max_top_logprobs: int = Field(20, ge=0, description="Alternatives per token, as at OpenAI.")
    max_n: int = Field(8, ge=1, description="Choices per request; each takes a slot.")


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
    acquire: Acquire = Field("fetch-or-build", description="How its files are had.")
    fetch: str | None = Field(
        None, description="A ready MLX repository on the Hub, optionally @revision; or embedded:NAME."
    )
    build_from: str | None = Field(
        None, description="The unquantized repository, optionally @revision, or folder to build from."
    )
    policy: str = Field("config-i", description="The quantization policy of the build.")
    path: UserPath | None = Field(None, description='The MLX model folder, for acquire = "local".')
    context_length: int | None = Field(
        None, ge=16, description="Longest prompt plus answer in tokens; the model's own when absent."
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
            aliases=["gpt-*", "claude-*", "default"],
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


_ENV_PREFIX = "CONFIGI_"
_ENV_FILE = "CONFIGI_CONFIG"


def load_settings(config_file: Path | None, overrides: Mapping[str, Any]) -> Settings:
    """Read every source. `overrides` are the flags, nested as the settings are.

    Raises:
        SetupError: one sentence that names the source, the key and what is wrong with it.
    """
    file = _find_file(config_file)
    if file is not None:
        _check_file(file)
    unknown = settings_errors.unknown_environment(Settings, os.environ, _ENV_PREFIX, reserved={_ENV_FILE})
    if unknown is not None:
        raise SetupError(unknown)
    try:
        settings = _read_sources(file, overrides)
    except ValidationError as error:
        raise SetupError(settings_errors.sentence(Settings, error, _source_of(overrides))) from None
    except SettingsError as error:
        raise SetupError(f"environment: {error}; lists and tables are written as JSON.") from None
    _check_models(settings)
    return settings


def _find_file(given: Path | None) -> Path | None:
    """A file that was asked for must be there; the usual places may be empty."""
    if given is None and (named := os.environ.get(_ENV_FILE)):
        given = Path(named)
    if given is not None:
        return given.expanduser()
    usual = (Path("config.toml"), Path(platformdirs.user_config_dir("configi")) / "config.toml")
    return next((path for path in usual if path.is_file()), None)


def _check_file(file: Path) -> None:
    """The file by itself, strictly: a TOML string is no number, though the environment has only strings."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{file}: not valid TOML: {error}.") from None
    except UnicodeDecodeError:
        raise SetupError(f"{file}: not a UTF-8 text file.") from None
    except OSError as error:
        raise SetupError(f"{file}: cannot be read: {error.strerror}.") from None
    try:
        Settings.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise SetupError(settings_errors.sentence(Settings, error, lambda _: str(file))) from None


def _read_sources(file: Path | None, overrides: Mapping[str, Any]) -> Settings:
    class Sources(BaseSettings, Settings):
        model_config = SettingsConfigDict(env_prefix=_ENV_PREFIX, env_nested_delimiter="__")

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file)

    loaded = Sources(**overrides)
    return Settings.model_construct(**{name: getattr(loaded, name) for name in Settings.model_fields})


def _source_of(overrides: Mapping[str, Any]) -> settings_errors.SourceOf:
    """The file was checked before, so what is wrong now came from a flag or else from the environment."""

    def source(loc: tuple[int | str, ...]) -> str:
        section, key = str(loc[0]), str(loc[1]) if len(loc) > 1 else ""
        if key in overrides.get(section, {}):
            return f"--{key.replace('_', '-')}"
        return f"environment: {_ENV_PREFIX}{section.upper()}" + (f"__{key.upper()}" if key else "")

    return source


def _check_models(settings: Settings) -> None:
    ids = [model.id for model in settings.models]
    if not ids:
        raise SetupError("models: at least one [[models]] table is needed.")
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise SetupError(f"models: the id '{twice}' is given twice.")
    default = settings.lifecycle.default_model
    if default and default not in ids:
        hint = settings_errors.did_you_mean(default, ids)
        raise SetupError(f"lifecycle.default_model: '{default}' is not the id of any [[models]] table{hint or '.'}")
