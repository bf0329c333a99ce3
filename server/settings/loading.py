"""Reading the settings: defaults < config.toml < environment < flags.

An unknown key is an error that suggests the right one, in the file as in the environment (`CONFIGI_<SECTION>__<KEY>`).
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from server.errors import SetupError
from server.settings import errors
from server.settings.types import Settings

_ENV_PREFIX = "CONFIGI_"
_ENV_FILE = "CONFIGI_CONFIG"
_IN_THIS_FOLDER = Path("config.toml")


def load_settings(config_file: Path | None, overrides: Mapping[str, Any]) -> Settings:
    """Read every source. `overrides` are the flags, nested as the settings are.

    Raises:
        SetupError: one sentence that names the source, the key and what is wrong with it.
    """
    file = _find_file(config_file)
    if file is not None:
        _check_file(file)
    unknown = errors.unknown_environment(Settings, os.environ, _ENV_PREFIX, reserved={_ENV_FILE})
    if unknown is not None:
        raise SetupError(unknown)
    try:
        settings = _read_sources(file, overrides)
    except ValidationError as error:
        raise SetupError(errors.sentence(Settings, error, _source_of(overrides))) from None
    except SettingsError:
        name = errors.unreadable_environment(Settings, os.environ, _ENV_PREFIX)
        raise SetupError(f"environment: {name} is not valid JSON; lists and tables are written as JSON.") from None
    _check_models(settings)
    _check_server(settings)
    return settings


def address_of_a_stranger(config_file: Path | None, overrides: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a config.toml that merely lies in the current folder names another address than the user's own sources
    do, and not the key: then the key is not meant for that address."""
    if config_file is not None or os.environ.get(_ENV_FILE) or _find_file(None) != _IN_THIS_FOLDER:
        return False
    ours, own = settings.server, _read_sources(None, overrides).server
    return (ours.host, ours.port) != (own.host, own.port) and ours.own_key == own.own_key


def _find_file(given: Path | None) -> Path | None:
    """A file that was asked for must be there; the usual places may be empty."""
    if given is None and (named := os.environ.get(_ENV_FILE)):
        given = Path(named)
    if given is not None:
        return given.expanduser()
    usual = (_IN_THIS_FOLDER, Path(platformdirs.user_config_dir("configi")) / "config.toml")
    return next((path for path in usual if path.is_file()), None)


def _check_file(file: Path) -> None:
    """The file alone, strictly: a TOML string is not a number, though the environment has only strings."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{file}: not valid TOML: {error}.") from None
    except UnicodeDecodeError:
        raise SetupError(f"{file}: not a UTF-8 text file.") from None
    except OSError as error:
        raise SetupError(f"{file}: cannot be read: {error.strerror}.") from None
    try:
        Settings.model_validate_json(json.dumps(values, default=_not_text), strict=True)
    except ValidationError as error:
        raise SetupError(errors.sentence(Settings, error, lambda _: str(file))) from None


def _not_text(value: object) -> list[str]:
    """A date or a time, which no setting is: what no text setting takes for one either."""
    return [str(value)]


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


def _source_of(overrides: Mapping[str, Any]) -> errors.SourceOf:
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
        hint = errors.did_you_mean(default, ids)
        raise SetupError(f"lifecycle.default_model: '{default}' is not the id of any [[models]] table{hint or '.'}")


def _check_server(settings: Settings) -> None:
    """What two keys must agree on, whatever source each is from."""
    server = settings.server
    if len(set(server.key_digests.values())) < len(server.key_digests):
        raise SetupError("server.api_keys: two clients have the same key.")
    if server.body_budget < server.max_body:
        raise SetupError("server.body_budget: less than what one body may have, server.max_body.")
    if settings.cache.share == "key" and not server.key_digests:
        raise SetupError('cache.share: "key" needs server.api_key or server.api_keys.')
