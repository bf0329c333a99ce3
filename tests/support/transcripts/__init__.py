"""Golden transcripts: what models of each wire format write, and what a client is to get of it. One file a format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Transcript:
    """`markers` are tokens of the format's usual vocabularies; those that are `hidden` show nothing."""

    wire_format: str
    title: str
    text: str
    answer: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    prompt_tail: str = ""
    markers: tuple[str, ...] = ()
    hidden: Callable[[str], bool] = lambda marker: True

    def __str__(self) -> str:
        return f"{self.wire_format}: {self.title}"


def shown(marker: str) -> bool:
    """Qwen's and many other tokenizers add their markers without saying that they are special."""
    return not marker.startswith("<")
