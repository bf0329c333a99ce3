"""Whether two texts share 16 words in a row: what a model was tuned on must not judge it."""

from __future__ import annotations

import re
from collections.abc import Iterable

WORDS = 16


def runs(text: str, length: int = WORDS) -> set[tuple[str, ...]]:
    """Every run of `length` words, without case and punctuation; a character of a script without spaces is a word."""
    words = re.findall(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]|\w+", text.lower())
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}


def shared(judged: Iterable[str], tuned: Iterable[str], length: int = WORDS) -> list[str]:
    """Runs of words, each as a line, that stand in both; sorted."""
    known = {run for text in tuned for run in runs(text, length)}
    return sorted({" ".join(run) for text in judged for run in runs(text, length) & known})
