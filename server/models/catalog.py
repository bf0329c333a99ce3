"""Which models there are, and which of them a request means. HTTP process.

A name is an id or an alias of the configuration, or "default", and nothing else: never a path, never a repository to
download.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from server.errors import ModelNotFound
from server.settings.types import ModelSettings, Settings

DEFAULT = "default"
_LONGEST_NAME = 256
_SHOWN = 80


class Catalog:
    def __init__(self, settings: Settings) -> None:
        self._entries = tuple(settings.models)
        self._by_id = {entry.id: entry for entry in self._entries}
        self._default = self._by_id[settings.lifecycle.default_model or self._entries[0].id]

    @property
    def default(self) -> ModelSettings:
        return self._default

    @property
    def entries(self) -> Sequence[ModelSettings]:
        return self._entries

    def resolve(self, name: str | None) -> ModelSettings:
        """The model that `name` means: an id; the default if it is blank or "default"; the first alias that matches.

        Raises:
            ModelNotFound: with a suggestion when `name` is nearly an id.
        """
        if name in self._by_id:
            return self._by_id[name]
        if name is None or not name.strip() or name == DEFAULT:
            return self._default
        if len(name) <= _LONGEST_NAME and name.isprintable() and name == name.strip():
            for entry in self._entries:
                if any(fnmatchcase(name, alias) for alias in entry.aliases):
                    return entry
        raise ModelNotFound(f"The model '{_printable(name)}' does not exist{self._suggestion(name)}", param="model")

    def _suggestion(self, name: str) -> str:
        folded = {entry.id.casefold(): entry.id for entry in self._entries}
        wanted = name.strip().casefold()[:_LONGEST_NAME]
        if close := difflib.get_close_matches(wanted, folded, n=1):
            return f"; did you mean '{folded[close[0]]}'?"
        return "; GET /v1/models lists those that do."


def _printable(name: str) -> str:
    """Short, and with control characters escaped: it goes to terminals and logs."""
    short = name if len(name) <= _SHOWN else name[:_SHOWN] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)
