"""A needle in a haystack: one sentence put at a depth of a long text, and asked for at its end.

The hay is the project's own prose, repeated; the needle is a number that no model can guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from quantize.evaluate.texts import OWN, read_texts

LENGTHS = (1_000, 4_000, 8_000)
DEPTHS = (0.1, 0.5, 0.9)
_ANSWER_TOKENS = 32


class Cell(msgspec.Struct, frozen=True):
    """`found` of `tries` needles, `length` tokens of hay, the needle behind the share `depth` of it."""

    length: int
    depth: float
    found: int
    tries: int


def run(
    ask: Callable[[Sequence[Mapping[str, str]], int], str],
    count: Callable[[str], int],
    *,
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    tries: int = 1,
    seed: int = 0,
) -> list[Cell]:
    """`ask` gives the reply to messages, of so many tokens at most; `count` the tokens of a text."""
    draw = np.random.default_rng(seed)
    prose = [str(text.messages[-1]["content"]) for text in read_texts(OWN) if text.kind == "prose"]
    hay = [sentence for text in prose for sentence in _sentences(text)]
    per_sentence = max(1, count(" ".join(hay)) // len(hay))
    cells = []
    for length in lengths:
        for depth in depths:
            numbers = [int(number) for number in draw.integers(10_000, 100_000, size=tries)]
            asked = [_question(hay, length // per_sentence, depth, number) for number in numbers]
            replies = [ask(question, _ANSWER_TOKENS) for question in asked]
            found = sum(str(number) in reply for number, reply in zip(numbers, replies, strict=True))
            cells.append(Cell(length, depth, found, tries))
    return cells


def _question(hay: Sequence[str], sentences: int, depth: float, number: int) -> list[dict[str, str]]:
    text = [hay[at % len(hay)] for at in range(sentences)]
    text.insert(round(depth * len(text)), f"The number on the harbour master's key is {number}.")
    asked = "What is the number on the harbour master's key? Reply with the number alone."
    return [{"role": "user", "content": f"{' '.join(text)}\n\n{asked}"}]


def _sentences(text: str) -> list[str]:
    return [sentence.strip() + "." for sentence in text.replace("\n", " ").split(". ") if sentence.strip()]
