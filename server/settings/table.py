"""The settings as a table: for the docs, and for config.toml.

`python -m server.settings.table > config.toml` writes that file again; a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize, SecretStr
from pydantic.fields import FieldInfo

from server.settings.types import ModelSettings, Settings

_NAMES = {
    str: "text", int: "integer", float: "number", bool: "true or false", Path: "path", SecretStr: "secret text",
    ByteSize: 'bytes, or text like "4GB"',
}  # fmt: skip


@dataclass(frozen=True)
class SettingRow:
    section: str
    key: str
    type: str
    # As TOML writes it; empty when there is none or it depends on the machine.
    default: str
    description: str


def setting_rows() -> Iterator[SettingRow]:
    """Every key of every section, in the order of the file; `models` last."""
    for section, field in Settings.model_fields.items():
        cls = ModelSettings if section == "models" else field.annotation
        if isinstance(cls, type) and issubclass(cls, BaseModel):
            for key, item in cls.model_fields.items():
                yield SettingRow(section, key, _type(item.annotation), _default(item), item.description or "")


def config_toml() -> str:
    """A config.toml with every key at its default; keys without one are commented out."""
    lines = [
        "# The settings of configi, each with its default. A key that is left out keeps its default.",
        "# Environment variables (CONFIGI_SERVER__PORT=8081) come before this file, flags before both.",
    ]
    section = ""
    for row in setting_rows():
        if row.section == "models":
            continue
        if row.section != section:
            section = row.section
            lines += ["", f"[{section}]"]
        lines.append(f"# {row.description}")
        lines.append(f"{row.key} = {row.default}" if row.default else f"# {row.key} = ...")
    for model in Settings().models:
        lines += ["", "[[models]]", *_model_lines(model)]
    return "\n".join(lines) + "\n"


def _model_lines(model: ModelSettings) -> Iterator[str]:
    for row in setting_rows():
        if row.section == "models":
            value = getattr(model, row.key)
            yield f"# {row.description}"
            yield f"{row.key} = {_toml(value)}" if value is not None else f"# {row.key} = ..."


def _default(field: FieldInfo) -> str:
    # A folder below the user's home is another on every machine.
    if field.is_required() or field.default is None or isinstance(field.default, Path):
        return ""
    return _toml(field.default)


def _toml(value: Any) -> str:
    """Texts, numbers, booleans and lists of texts are written alike in TOML and JSON."""
    if isinstance(value, ByteSize) and value:
        value = value.human_readable(decimal=True).replace(".0", "")
    return json.dumps(value)


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(json.dumps(choice) for choice in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_type(part) for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) is list:
        return f"list of {_type(get_args(annotation)[0])}s"
    if get_origin(annotation) is dict:
        return f"table of {_type(get_args(annotation)[1])}s"
    return _NAMES[annotation]


if __name__ == "__main__":
    print(config_toml(), end="")
