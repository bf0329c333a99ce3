"""How long a model stays in memory after a request, as Ollama's clients say it -> seconds. Pure. HTTP process."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = rf"(\d+(?:\.\d*)?|\.\d+)({'|'.join(sorted(_UNIT_S, key=len, reverse=True))})"
_DURATION = re.compile(rf"(?P<sign>[+-]?)(?P<parts>(?:{_PART})+)")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?")
_LONGEST_TEXT = 64


def _seconds(value: Any) -> Any:
    """A number is seconds; a text may have units (5m, 1h30m). Below 0 is for ever."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError('should be seconds, a duration like "5m", 0, or -1 for ever')
    seconds = _duration(value.strip()) if isinstance(value, str) else float(value)
    return math.inf if seconds < 0 else seconds


def _duration(text: str) -> float:
    if len(text) <= _LONGEST_TEXT and _NUMBER.fullmatch(text):
        return float(text)
    match = _DURATION.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
    if match is None:
        raise ValueError('should be seconds, a duration like "5m", 0, or -1 for ever')
    seconds = sum(float(number) * _UNIT_S[unit] for number, unit in re.findall(_PART, match["parts"]))
    return -seconds if match["sign"] == "-" else seconds


# Strict models refuse infinity, which is what a negative one becomes; so it is checked here, entirely.
KeepAlive = Annotated[Any, BeforeValidator(_seconds)]
