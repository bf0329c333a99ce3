"""What is wrong with a setting, in one sentence that names the source, the key and the right spelling.

Knows pydantic's errors and the shape "sections of keys", nothing of the settings themselves. Secrets are never shown.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

# From an error's location to the name of the file, flag or environment variable it came from.
SourceOf = Callable[[tuple[int | str, ...]], str]
_SHOWN = 80


def sentence(root: type[BaseModel], error: ValidationError, source_of: SourceOf) -> str:
    """The first error; a misspelt key before others, because it is often their cause."""
    first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    loc, source = first["loc"], source_of(first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{source}: {_unknown(root, loc)}"
    message = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
    text = f"{source}: {_name(loc)}: {message[0].lower()}{message[1:]}"
    if first["type"] in ("value_error", "missing") or _is_secret(root, loc):
        return f"{text}."
    got = repr(first["input"])
    return f"{text}, got {got if len(got) <= _SHOWN else got[:_SHOWN] + '...'}."


def unknown_environment(
    root: type[BaseModel], environ: Mapping[str, str], prefix: str, reserved: set[str]
) -> str | None:
    """A sentence about the first variable with our prefix that is not a setting."""
    keys = {f"{prefix}{section}__{key}".upper() for section, fields in _sections(root).items() for key in fields}
    known = keys | reserved | {f"{prefix}{name}".upper() for name in root.model_fields}
    for name in sorted(environ):
        upper = name.upper()
        if upper.startswith(prefix) and upper not in known:
            # A forgotten or wrong section first: CONFIGI_PORT.
            last = upper.removeprefix(prefix).split("__")[-1]
            same_key = [key for key in keys if key.endswith(f"__{last}")]
            return f"environment: unknown variable {name}{did_you_mean(upper, same_key or keys) or '.'}"
    return None


def unreadable_environment(root: type[BaseModel], environ: Mapping[str, str], prefix: str) -> str:
    """The first variable that should hold JSON and does not; the prefix when it cannot be told."""
    sections = _sections(root)
    in_json = {f"{prefix}{section}".upper() for section in sections} | {
        f"{prefix}{section}__{key}".upper()
        for section, fields in sections.items()
        for key, field in fields.items()
        if get_origin(field.annotation) in (list, dict)
    }
    return next((name for name in sorted(environ) if name.upper() in in_json and not _is_json(environ[name])), prefix)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence, `; did you mean 'port'?`, or nothing."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _unknown(root: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    sections = _sections(root)
    key = str(loc[-1])
    if len(loc) > 1:
        section = str(loc[0])
        here = f"[[{section}]]" if isinstance(loc[1], int) else f"[{section}]"
        return f"unknown key '{key}' in {here}{did_you_mean(key, sections[section]) or _elsewhere(key, sections)}"
    return f"unknown section or key '{key}'{did_you_mean(key, sections) or _elsewhere(key, sections)}"


def _elsewhere(key: str, sections: Mapping[str, Iterable[str]]) -> str:
    for section, keys in sections.items():
        if key in keys:
            return f"; it belongs in [{section}]."
    return "."


def _name(loc: tuple[int | str, ...]) -> str:
    """server.port, models[0].acquire"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _sections(root: type[BaseModel]) -> dict[str, Mapping[str, FieldInfo]]:
    return {name: _model(field).model_fields for name, field in root.model_fields.items()}


def _model(field: FieldInfo) -> type[BaseModel]:
    """The class of a section, also of a list of tables."""
    annotation: Any = field.annotation
    for inner in (annotation, *get_args(annotation)):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    raise TypeError(f"{annotation} is not a section")


def _is_secret(root: type[BaseModel], loc: tuple[int | str, ...]) -> bool:
    """Also true of a whole section that holds one: its input would show it."""
    keys = _sections(root).get(str(loc[0]), {})
    names = [part for part in loc[1:] if isinstance(part, str)]
    fields = [keys[name] for name in names[:1] if name in keys] or list(keys.values())
    return any(SecretStr in (f.annotation, *get_args(f.annotation)) for f in fields)
