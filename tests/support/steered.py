"""A running engine with a tiny real model, asked for answers that something holds to a form."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from pydantic import ByteSize

from server.chat.grammar import lark
from server.chat.tokenizers.vocabulary import Vocabulary
from server.engine_client.client import EngineClient
from server.engine_client.protocol import Finished, Generate, Grammar, Sampling, Tokens
from server.settings.types import CacheSettings, EngineSettings, Settings
from tests.support.engines import kept_engine
from tests.support.tiny_model import BOS_ID, END_ID

PROMPT = [70, 80, 90, 100, 110]
# Something that needs names, words, numbers and a list.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "size": {"enum": ["small", "large"]},
        "people": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["city", "size", "people"],
    "additionalProperties": False,
}
JSON = Grammar(text=f"start: {lark.json_schema(SCHEMA)}")
_SAMPLING = {"allowed", "banned", "logit_bias", "temperature", "xtc_probability", "xtc_threshold", "top_k"}


class Answer:
    """What the engine made of one request. `best`: the likeliest tokens at each position, one list."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.reason = ""
        self.best: list[tuple[int, float]] = []

    def text(self, vocabulary: Vocabulary) -> str:
        return b"".join(vocabulary.token_bytes(token) for token in self.tokens).decode("utf-8", "replace")


class Asked:
    """Called with requests, it has their answers."""

    def __init__(self, engine: EngineClient, vocabulary: Vocabulary) -> None:
        self.engine = engine
        self.vocabulary = vocabulary

    async def __call__(self, *requests: Generate) -> list[Answer]:
        answers = [Answer() for _ in requests]
        with contextlib.closing(self.engine.generate(requests, self.vocabulary.token_table)) as stream:
            async for index, event in stream:
                if isinstance(event, Tokens):
                    answers[index].tokens += event.tokens
                    answers[index].best += [best for entry in event.logprobs for best in entry.top]
                elif isinstance(event, Finished):
                    answers[index].reason = event.reason
        return answers


Test = Callable[[Asked], Coroutine[Any, Any, None]]
Run = Callable[[Test], None]


@contextlib.contextmanager
def steered_engine(model: Path, vocabulary: Vocabulary) -> Iterator[Run]:
    """One engine for many tests."""
    settings = Settings(engine=EngineSettings(max_concurrent=8), cache=CacheSettings(disk_limit=ByteSize(0)))
    with kept_engine(model, settings) as run:
        yield lambda test: run(lambda engine: test(Asked(engine, vocabulary)))


def request(grammar: Grammar | None = None, *, seed: int = 1, **fields: Any) -> Generate:
    """`fields` are those of `Generate` and of `Sampling`."""
    sampling = {name: fields.pop(name) for name in _SAMPLING & fields.keys()}
    defaults: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 400, "stop_tokens": [END_ID, BOS_ID]}
    return Generate(id=0, grammar=grammar, sampling=Sampling(seed=seed, **sampling), **(defaults | fields))
