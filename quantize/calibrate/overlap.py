"""Whether two texts share 16 words in a row: what a model was calibrated on must not judge it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator

RUN = 16
# A character of a script that is written without spaces counts as a word.
_WORD = re.compile(r"[\u0e00-\u0e7f\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|\w+")

Run = tuple[str, ...]


def runs(text: str) -> Iterator[Run]:
    """Every 16 words in a row, without case and punctuation."""
    last = deque[str](maxlen=RUN)
    for word in _WORD.finditer(text.lower()):
        last.append(word[0])
        if len(last) == RUN:
            yield tuple(last)


def shared_runs(judged: Iterable[str], calibrated: Iterable[str]) -> list[str]:
    """The runs that stand in both, each as a line, sorted; empty when nothing is shared."""
    # What judges is small; what calibrates may be all that somebody has written.
    known = {run for text in judged for run in runs(text)}
    return sorted({" ".join(run) for text in calibrated for run in runs(text) if run in known})
