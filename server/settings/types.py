"""The settings as types: every number a user may want to change, with its unit, and one line that says why.

`config.toml` and `docs/settings.md` are compared with them by a test. `loading.py` fills them in.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from server.settings.engine import CacheSettings, EngineSettings
from server.settings.models import LifecycleSettings, ModelSettings, StorageSettings, default_models
from server.settings.section import Section
from server.settings.serving import LimitSettings, ServerSettings

__all__ = [
    "CacheSettings",
    "EngineSettings",
    "LifecycleSettings",
    "LimitSettings",
    "LogSettings",
    "ModelSettings",
    "ServerSettings",
    "Settings",
    "StorageSettings",
]


class LogSettings(Section):
    """What is written to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity written.")
    format: Literal["auto", "text", "json"] = Field(
        "auto", description="auto is text on a terminal and one JSON object per line elsewhere."
    )
    prompts: bool = Field(False, description="true writes prompt and answer texts to the log.")


class Settings(Section):
    """All settings. Immutable; made once by `load_settings` and handed down."""

    server: ServerSettings = ServerSettings()
    engine: EngineSettings = EngineSettings()
    lifecycle: LifecycleSettings = LifecycleSettings()
    storage: StorageSettings = StorageSettings()
    cache: CacheSettings = CacheSettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()
    models: list[ModelSettings] = Field(default_factory=default_models)

    @property
    def shares_prefixes(self) -> bool:
        """Among all clients; otherwise each key has its own."""
        share = self.cache.share
        return share == "all" or (share == "auto" and len(self.server.key_digests) < 2)
