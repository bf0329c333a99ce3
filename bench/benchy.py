"""llama-benchy against every server: `python -m bench.benchy [--pp 2048] [--tg 128] [--depth 0 4096]`.

An instrument that others made: it draws the prompts from a book, asks, keeps the time and counts the tokens. Only the
book is ours, as everything here must work without a network. `bench.peers` installs it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench import prompts, serving
from bench.peers import BENCHY, MODEL, environment
from bench.result import RESULTS, Measured, Row, Target
from bench.scenario import Scenario, Side
from bench.sse import NoAnswer

_BOOK = "book.txt"
_BOOK_TOKENS = 20_000
_TIMEOUT_S = 900.0
# llama-benchy's name for a figure, what it is, its unit and what a value of it is in that unit. Not its figure of
# prefill: that counts until the first event of any kind, which some servers send before they have read a token.
_FIGURES = (("e2e_ttft", "time to first token", "s", 0.001), ("tg_throughput", "decoding", "tok/s", 1.0))


def scenario(pp: int, tg: int, depths: Sequence[int]) -> Scenario:
    """`pp` tokens of prompt and `tg` of answer behind each of `depths` tokens, which are read before in a request of
    their own."""
    rows = [
        row for depth in depths for context in ([True, False] if depth else [False]) for row in _rows(depth, context)
    ]
    options = ["--pp", str(pp), "--tg", str(tg), "--depth", *map(str, depths)]
    return Scenario(
        "llama_benchy",
        f"llama-benchy: {pp:,} tokens of prompt and {tg} of answer, behind {_listed(depths)} tokens",
        tuple(rows),
        functools.partial(_measure, options=options),
        model="endless",
    )


def _listed(depths: Sequence[int]) -> str:
    return " and ".join(f"{depth:,}" for depth in depths)


def _rows(depth: int, context: bool) -> Iterator[Row]:
    where = f"reading {depth:,} tokens ahead" if context else f"behind {depth:,} tokens" if depth else "alone"
    for name, what, unit, _ in _FIGURES:
        target = Target(1.0, at_least=unit == "tok/s")
        yield Row(_key(depth, context, name), f"{where}: {what}", unit, target)


def _key(depth: int, context: bool, name: str) -> str:
    return f"{depth} {context} {name}"


def _measure(side: Side, options: Sequence[str]) -> Measured:
    with side.server() as server, book(side) as address:
        report = asked(side, [*options, "--base-url", f"{server.url}/v1", "--book-url", address])
    return Measured(
        {
            _key(run["context_size"], run["is_context_prefill_phase"], name): run[name]["mean"] * unit
            for run in report["benchmarks"]
            for name, _, _, unit in _FIGURES
        }
    )


def asked(side: Side, options: Sequence[str]) -> Any:
    """llama-benchy's report.

    Raises:
        NoAnswer: it did not make one.
    """
    saved = side.folder / "benchy.json"
    own = ["--runs", "1", "--no-warmup", "--skip-coherence", "--enable-prefix-caching", "--exit-on-first-fail"]
    names = ["--model", MODEL, "--tokenizer", str(side.model), "--save-result", str(saved), "--format", "json"]
    done = subprocess.run(
        [str(BENCHY.program), *own, *names, *options],
        capture_output=True,
        text=True,
        env=environment(side.folder / "home"),
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0 or not saved.is_file():
        raise NoAnswer(f"llama-benchy failed: {(done.stdout + done.stderr)[-500:]}")
    return msgspec.json.decode(saved.read_bytes())


@contextlib.contextmanager
def book(side: Side) -> Iterator[str]:
    """The address of a book, different for each repetition and the same for each server."""
    shelf = side.folder / "shelf"
    shelf.mkdir()
    (shelf / _BOOK).write_text(prompts.text(side.model, _BOOK_TOKENS, side.number))
    handler = functools.partial(_Quiet, directory=str(shelf))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as library:
        threading.Thread(target=library.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{library.server_address[1]}/{_BOOK}"
        library.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.benchy")
    parser.add_argument("--pp", type=int, default=2048, help="tokens of the prompt")
    parser.add_argument("--tg", type=int, default=128, help="tokens of the answer")
    parser.add_argument("--depth", type=int, nargs="+", default=[0, 4096], help="tokens before the prompt")
    parser.add_argument("--repeat", type=int, default=1, help="repetitions; the median counts")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    args = parser.parse_args()
    if not BENCHY.installed:
        print("llama-benchy is not installed, see `python -m bench.peers`.", file=sys.stderr)
        return 1
    return int(not serving.run(scenario(args.pp, args.tg, args.depth), args.repeat, args.output))


if __name__ == "__main__":
    sys.exit(main())
