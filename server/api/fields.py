"""The rule for request fields: each works, is accepted without effect on the answer, or is refused by name.

`tables.py` holds one `Fields` per endpoint as data; the docs are made from the same data. A field in no table is
accepted and named in the response header `x-configi-ignored`. An explicit null means absent. One thing may have several
names, each server its own: all of them are read as one, and two that say different things are refused. HTTP process.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.api.wire import shown
from server.errors import InvalidRequest, UnsupportedField

IGNORED_HEADER = "x-configi-ignored"
_NAME_CHARS = 64
_HEADER_CHARS = 1024
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a field is refused, and the values that are accepted: they ask for nothing, or for what happens anyway."""

    why: str
    unless: tuple[Any, ...] = ()

    def allows(self, value: object) -> bool:
        # In Python True equals 1, in JSON it does not; 1.0 is 1 in both.
        return any(
            value == harmless and isinstance(value, bool) == isinstance(harmless, bool) for harmless in self.unless
        )


@dataclass(frozen=True, slots=True)
class Fields:
    """The three tables of one endpoint: name -> what it does, why it has no effect, why it is refused.

    `aliases`: other names of working fields. `inside`: a field that holds others -> the names that it may hold.
    """

    works: Mapping[str, str]
    accepted: Mapping[str, str]
    refused: Mapping[str, Refusal]
    aliases: Mapping[str, str] = field(default_factory=dict)
    inside: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Screened:
    """A body after the rule: the values of working fields by their first names, how the client spelled these names,
    and what is in no table."""

    values: dict[str, Any]
    spelled: dict[str, str]
    ignored: tuple[str, ...]

    def headers(self, *inside: str) -> dict[str, str]:
        """The header that names what was ignored; `inside` are names from inside a working field."""
        ignored = (*self.ignored, *inside)
        return {IGNORED_HEADER: _listed(ignored)} if ignored else {}


def screen(body: dict[str, Any], fields: Fields) -> Screened:
    values: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    ignored = []
    for name, where, value in _given(body, fields):
        known = fields.aliases.get(name, name)
        if known in fields.works:
            if known in values and values[known] != value:
                raise InvalidRequest(f"{spelled[known]} and {where} are one thing, and differ.", param=where)
            values[known], spelled[known] = value, where
        elif name in fields.refused:
            refusal = fields.refused[name]
            if not refusal.allows(value):
                raise UnsupportedField(f"{where} is not supported: {refusal.why}.", param=where)
        elif name not in fields.accepted:
            ignored.append(where)
    options = values.get("stream_options")
    if isinstance(options, dict):
        ignored += [f"stream_options.{name}" for name in options if name not in STREAM_OPTIONS]
    return Screened(values, spelled, tuple(ignored))


def _given(body: dict[str, Any], fields: Fields) -> Iterator[tuple[str, str, Any]]:
    """Name, place and value of every field that is not null; a field that holds others is replaced by them."""
    for name, value in body.items():
        if value is None:
            continue
        if name not in fields.inside:
            yield name, name, value
            continue
        if not isinstance(value, dict):
            raise InvalidRequest(f"{name} must be an object, not {shown(value)}.", param=name)
        for inner, given in value.items():
            # A name that does not belong there is known nowhere.
            if given is not None:
                where = f"{name}.{inner}"
                yield (inner if inner in fields.inside[name] else where), where, given


def unread(objects: Iterable[Any], known: Container[str], where: str) -> tuple[str, ...]:
    """Names for keys, other than `known`, of objects that have been read: each once for all of them."""
    keys = (key for given in objects if isinstance(given, dict) for key, value in given.items() if value is not None)
    return tuple(f"{where}.{key}" for key in dict.fromkeys(keys) if key not in known)


# include_obfuscation pads chunks against traffic analysis; on loopback there is nothing to hide from.
STREAM_OPTIONS = ("include_usage", "include_obfuscation")


def _listed(names: tuple[str, ...]) -> str:
    """A header value: safe characters only and of bounded length, whatever the client called its fields."""
    header = ""
    for name in names:
        safe = _UNSAFE.sub("?", name[:_NAME_CHARS]) or "?"
        if len(header) + len(safe) + 2 > _HEADER_CHARS - len(", ..."):
            return header + ", ..."
        header = f"{header}, {safe}" if header else safe
    return header
