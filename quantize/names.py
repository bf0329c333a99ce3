"""The one door to the disk for names that others chose: a repository's description, an index, a manifest, a setting.

`folder / checked_name(name)` stays in `folder`, on every file system that a model may be copied to.
tests/project/test_doors.py finds a join that goes around it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from quantize.errors import SourceError
from quantize.printable import printable

_LONGEST_BYTES = 255
# Names of devices on Windows, with or without an ending.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_SHOWN = 80


def checked_name(name: str) -> str:
    """`name`, which is the name of one file or folder and cannot be anything else. Raises SourceError."""
    if not _is_name(name):
        raise _refused(name)
    return name


def checked_path(path: str) -> str:
    """`path`, which leads from a folder to something inside it: names between slashes. Raises SourceError."""
    if not all(map(_is_name, path.split("/"))):
        raise _refused(path)
    return path


def _is_name(name: str) -> bool:
    return (
        name not in ("", ".", "..")
        and not any(char in name for char in '/\\:*?"<>|')
        and name.isprintable()
        and name == name.strip()
        and not name.endswith(".")
        and not _RESERVED.fullmatch(name)
        and len(name.encode(errors="replace")) <= _LONGEST_BYTES
    )


def _refused(name: str) -> SourceError:
    return SourceError(f"'{printable(name, limit=_SHOWN)}' cannot be the name of a file; refused.")


def checked_sha256(value: object) -> str:
    """`value`, which is a sha256 in hex: names of blobs are made of it. Raises SourceError."""
    return _checked_hex(value, 64, "a sha256")


def checked_commit(value: object) -> str:
    """`value`, which is a commit of the Hub in hex: names of snapshots are made of it. Raises SourceError."""
    return _checked_hex(value, 40, "a commit")


def _checked_hex(value: object, digits: int, kind: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
        raise SourceError(f"'{printable(str(value), limit=_SHOWN)}' is not {kind}; refused.")
    return value


def distinct_names(names: Iterable[str]) -> None:
    """Raises SourceError when two of `names` are one file where case or Unicode form does not count, as on macOS."""
    seen: dict[str, str] = {}
    for name in names:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if seen.setdefault(folded, name) != name:
            raise SourceError(f"{seen[folded]} and {name} are one file on many file systems; refused.")
