"""JSON lines that a person gives: texts to calibrate with or to judge on, questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantize.errors import QuantizeError
from quantize.files import read_text
from quantize.foreign_json import read_json


def json_lines(file: Path, error: type[QuantizeError]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each line that is not blank, where it stands and its object. Raises `error` at the first that has none."""
    # Not splitlines: a string may hold the line separators of Unicode as they are.
    for number, line in enumerate(read_text(file, error).split("\n"), start=1):
        if line.strip():
            where = f"{file}, line {number}"
            yield where, _object(line, where, error)


def _object(line: str, where: str, error: type[QuantizeError]) -> dict[str, Any]:
    try:
        read = read_json(line.encode())
    except ValueError:
        raise error(f"{where}: not valid JSON.") from None
    if not isinstance(read, dict):
        raise error(f"{where}: not a JSON object.")
    try:
        json.dumps(read, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # No tokenizer takes it.
        raise error(f"{where}: holds half a character, a \\ud800 to \\udfff alone.") from None
    return read
