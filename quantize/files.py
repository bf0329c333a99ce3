"""What several rooms do with files: have them on the disk for certain, write several, read a person's text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from quantize.errors import QuantizeError
from quantize.names import checked_path


def sync(path: Path) -> None:
    """A file's bytes, or a folder's names, are on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(file: Path, content: bytes) -> None:
    """Whoever reads `file` meanwhile finds what was there before, or all of `content`."""
    part = file.with_name(f".{file.name}")
    part.write_bytes(content)
    part.replace(file)


def write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """`files` by their path in `folder`. Raises SourceError for a path that leads elsewhere."""
    for name, content in files.items():
        path = folder / checked_path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def read_text(file: Path, error: type[QuantizeError]) -> str:
    """Without the byte order mark that some editors write. Raises `error` for what cannot be read or is no UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as reason:
        raise error(f"{file} cannot be read: {reason.strerror}.") from None
    except UnicodeDecodeError:
        raise error(f"{file} is not text in UTF-8.") from None
