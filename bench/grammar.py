"""What answers under a grammar cost the others: `python -m bench.grammar`, on a quiet machine.

Four rows decode together, of which none, one and all are held by a grammar that never ends; rounds take turns. Whoever
is free in a batch with one held row must be as fast as in a batch without, within 5 %.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import time
from pathlib import Path
from statistics import median

from pydantic import ByteSize

from bench.models import MODELS, cache_folder
from bench.result import RESULTS, Figure, Result, Target, lines, write
from bench.setup import setup
from server.chat.grammar import lark
from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.chat.tokenizers.vocabulary import Vocabulary
from server.engine_client.client import EngineClient
from server.engine_client.protocol import Generate, Grammar, Sampling, Tokens
from server.engine_client.supervisor import Supervisor
from server.settings.types import CacheSettings, EngineSettings, Settings

ROWS = 4
HELD = (0, 1, 4)
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "role": {"enum": ["cook", "driver", "painter", "teacher"]},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string", "maxLength": 30}},
            "required": ["street"],
        },
    },
    "required": ["name", "age", "role", "address"],
    "additionalProperties": False,
}
ENDLESS = Grammar(text="start: " + lark.json_schema({"type": "array", "items": _PERSON, "minItems": 5000}))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.grammar")
    parser.add_argument("--model", choices=sorted(MODELS), default="smollm2")
    parser.add_argument("--tokens", type=int, default=96, help="of each row in a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    args = parser.parse_args()
    folder = MODELS[args.model](cache_folder())
    rates = asyncio.run(_measure(folder, args.tokens, args.rounds))
    free = rates[0]
    figures = [Figure("no row of 4 is held, tokens/s of each", "tokens/s", None, free)]
    figures += [
        Figure(f"{held} of 4 held, tokens/s of each", "tokens/s", free, rates[held], target)
        for held, target in ((1, Target(0.95, at_least=True)), (4, None))
    ]
    result = Result("grammar", "Rows held by a grammar", "no grammar", setup(), tuple(figures))
    write(result, args.output)
    print("\n".join(lines(result)))


async def _measure(folder: Path, tokens: int, rounds: int) -> dict[int, float]:
    """Tokens a second of one row, by how many of them are held: the median of the rounds."""
    tokenizer = ChatTokenizer.load(folder)
    vocabulary = Vocabulary(tokenizer.table(tokenizer.context_length))
    supervisor = Supervisor(
        Settings(engine=EngineSettings(max_concurrent=ROWS), cache=CacheSettings(disk_limit=ByteSize(0)))
    )
    made: dict[int, list[float]] = {held: [] for held in HELD}
    try:
        engine = await supervisor.start(folder)
        for number in range(rounds + 1):
            for held in HELD:
                rate = await _round(engine, vocabulary, tokens, held, number)
                # The first builds the table of tokens and compiles the grammar.
                if number:
                    made[held].append(rate)
    finally:
        await supervisor.stop()
    return {held: median(rates) for held, rates in made.items()}


async def _round(engine: EngineClient, vocabulary: Vocabulary, tokens: int, held: int, number: int) -> float:
    """From the second token of the last row that began to the last of all: the batch is whole meanwhile."""
    rng = random.Random(number)
    prompt = [rng.randrange(100, 400) for _ in range(24)]
    rows = [
        Generate(
            id=0,
            prompt=[*prompt, 100 + row],
            max_tokens=tokens,
            stop_tokens=[],
            sampling=Sampling(seed=row, temperature=0.8),
            grammar=ENDLESS if row < held else None,
        )
        for row in range(ROWS)
    ]
    counts = [0] * ROWS
    begun = 0.0
    counted = 0
    with contextlib.closing(engine.generate(rows, vocabulary.token_table)) as stream:
        async for index, event in stream:
            if not isinstance(event, Tokens):
                continue
            counts[index] += len(event.tokens)
            if not begun and all(counts):
                begun, counted = time.perf_counter(), sum(counts)
            if begun and max(counts) == tokens:
                break
    return (sum(counts) - counted) / (time.perf_counter() - begun) / ROWS


if __name__ == "__main__":
    main()
