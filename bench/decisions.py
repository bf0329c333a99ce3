"""What questions about one input cost: `python -m bench.decisions`, on a quiet machine, minutes on one without a GPU.

One question and a hundred about inputs of the same length, through the whole server. Each input is a new one, so that
nothing of it is cached; where it is longer than the model's context, that is stretched: nobody looks at the answers.

Where there is no GPU, seconds are those that the server takes of the processors: what else runs on the machine
counts for little then.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from bench.models import MODELS, cache_folder, with_room
from bench.prompts import text
from bench.result import RESULTS, Figure, Result, Target, lines, write
from bench.servers import Server, running
from bench.setup import setup

MANY = 100
_THINGS = str.split("river mountain window winter letter garden village teacher ocean candle bridge forest")
Question = dict[str, Any]


def predicate(number: int) -> Question:
    a, b = _two(number)
    return {"type": "predicate", "instructions": f"Is a {a} named before a {b}?"}


def choice(number: int) -> Question:
    """With options of several tokens."""
    a, b = _two(number)
    values = [f"the {a}", f"the {b}"]
    return {"type": "choice", "instructions": "Which comes first?", "choices": [{"value": v} for v in values]}


def unlike(number: int) -> Question:
    """As `choice`, and no two begin alike."""
    a, b = _two(number)
    return choice(number) | {"instructions": f"{a.title()} or {b}: which comes first?"}


def _two(number: int) -> tuple[str, str]:
    """Another pair for each of 132 numbers."""
    first, apart = number % len(_THINGS), 1 + number // len(_THINGS)
    return _THINGS[first], _THINGS[(first + apart) % len(_THINGS)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.decisions")
    parser.add_argument("--model", choices=sorted(MODELS), default="one_in_six")
    parser.add_argument("--tokens", type=int, default=10_000, help="of the input (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = with_room(MODELS[args.model](cache_folder()), Path(name) / "model", 2 * args.tokens)
        with running("configi", model, Path(name), cache={"disk_limit": 0}) as server:
            figures = _measure(server, model, args.tokens, args.rounds)
    title = f"Questions about an input of {args.tokens:,} tokens"
    result = Result("decisions", title, "one question", setup(), tuple(figures))
    write(result, args.output)
    print("\n".join(lines(result)))


def _measure(server: Server, model: Path, tokens: int, rounds: int) -> list[Figure]:
    """The medians of rounds that take turns."""
    sets: dict[str, list[Question]] = {
        "one": [predicate(0)],
        "predicates": [predicate(number) for number in range(MANY)],
        "choices": [choice(number) for number in range(MANY)],
        "unlike": [unlike(number) for number in range(MANY)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in sets}
    read: dict[str, int] = {}
    number = 0
    for _ in range(rounds):
        for name, questions in sets.items():
            number += 1
            given = text(model, tokens, number)
            start = _clock(server)
            usage = _decide(server, given, questions)["usage"]
            seconds[name].append(_clock(server) - start)
            read[name] = usage["input_tokens"]
            print(
                f"{name}: {seconds[name][-1]:.1f} s, {read[name]} tokens, {usage['input_tokens_details']}", flush=True
            )
    one = median(seconds["one"])
    labels = {
        "predicates": "yes or no",
        "choices": "two options of two words, the question before them the same",
        "unlike": "two options of two words, no two begin alike",
    }
    return [
        Figure(
            f"{MANY} questions of {(read[name] - read['one']) / (MANY - 1):.0f} tokens, {label}",
            "s",
            one,
            median(seconds[name]),
            Target(1.3) if name != "unlike" else None,
        )
        for name, label in labels.items()
    ]


def _clock(server: Server) -> float:
    if sys.platform == "darwin":
        return time.monotonic()
    spent = [process.cpu_times() for process in (psutil.Process(server.process.pid), *server.children())]
    return float(sum(times.user + times.system for times in spent))


def _decide(server: Server, given: str, questions: list[Question]) -> Any:
    body = json.dumps({"input": given, "questions": questions}).encode()
    request = urllib.request.Request(f"{server.url}/v1/decisions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=3600) as response:
        return json.loads(response.read())


if __name__ == "__main__":
    main()
