"""Texts to ask with: made from a number, so that no two repetitions share more than the template does. Pure."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

Body = dict[str, Any]

_TOPICS = (
    "a lighthouse keeper", "a village under the snow", "two brothers at sea", "an old clockmaker", "a lost dog",
    "the first day of school", "a garden in spring", "a train at night", "a king without a crown", "the last bee",
    "a letter from far away", "a painter and her mother", "a bridge over a river", "a storm in the desert",
    "a fox and a hunter", "an island of birds",
)  # fmt: skip
_WORDS = str.split("""
    river mountain window winter letter garden silver morning quiet village teacher ocean candle bridge forest market
    station harvest shadow copper meadow lantern traveller kitchen orchard weather harbour signal paper thunder
""")


def story(number: int) -> str:
    """A question that is answered at length."""
    topic = _TOPICS[number % len(_TOPICS)]
    return f"Write a long story about {topic}, chapter {number + 1}. Describe every detail."


def question(number: int) -> str:
    """A question of a few words."""
    a, b = random.Random(number).sample(_WORDS, 2)
    return f"What is the difference between a {a} and a {b}?"


def text(model: Path, tokens: int, number: int) -> str:
    """About `tokens` tokens of `model`'s tokenizer, different from the first words on for each `number`."""
    draw = random.Random(number)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    words = [f"Report {number}."]
    while True:
        words += [" ".join(draw.choices(_WORDS, k=9)).capitalize() + "." for _ in range(max(1, tokens // 40))]
        ids = tokenizer.encode(" ".join(words), add_special_tokens=False).ids
        if len(ids) >= tokens:
            return str(tokenizer.decode(ids[:tokens]))


def chat(*turns: str, max_tokens: int, system: str | None = None, stream: bool = True) -> Body:
    """A greedy chat request; `turns` are the user's and the assistant's in alternation."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return request(messages, max_tokens=max_tokens, stream=stream)


def endless() -> Body:
    """A stream that outlasts whatever it is measured against, asked of a model that never ends by itself."""
    return chat("Count from one to one thousand in words.", max_tokens=4000)


def request(messages: list[dict[str, str]], *, max_tokens: int, stream: bool = True) -> Body:
    body: Body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": stream}
    return body | {"stream_options": {"include_usage": True}} if stream else body
