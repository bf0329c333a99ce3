"""What the host does in a decode step beside the model: `python -m bench.host`, in a few seconds.

Eight rows decode with a model that computes nothing. Counted is the processor time of the thread that runs the loop:
building the step's graph but for the model's own, handing it to the device, and making events of what it drew. Handing
over is also shown alone, since it is MLX's: on the CPU backend it allocates every array, on Metal arrays come out of a
cache, and kernels are encoded.

The device has finished a step before the next one is timed. Else MLX, which lets so many tasks wait and no more, makes
the thread sleep until the CPU backend has sorted, and its falling asleep and waking up would count as the host's time.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from bench.quiet import disturbance
from bench.result import RESULTS, Figure, Result, Target, lines, write
from bench.setup import setup
from server.engine.batch import Batch
from server.engine.decoder import Newcomer
from server.engine_client.protocol import Generate, Sampling

ROWS = 8
_SMALL, _LARGE = 49_152, 262_144
_BOUND = Target(1.0, absolute=True)


class Nothing:
    """A model of one layer that gives the same logits at once."""

    def __init__(self, vocabulary: int) -> None:
        self._logits = mx.random.normal((vocabulary,), key=mx.random.key(0))
        mx.eval(self._logits)

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
        filling = mx.zeros((tokens.shape[0], 1, 1, 1))
        cache[0].update_and_fetch(filling, filling)
        return mx.broadcast_to(self._logits, (tokens.shape[0], 1, self._logits.shape[0]))


# What the requests ask for, by row. A model of the Gemma family says top-k 64 and top-p 0.95 itself.
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"sampling": {"temperature": 0.0}},
    "top-k 64, top-p 0.95": {"sampling": {"top_k": 64, "top_p": 0.95}},
    "top-p 0.95": {"sampling": {"top_p": 0.95}},
    "the same with 20 logprobs": {"sampling": {"top_k": 64, "top_p": 0.95}, "top_logprobs": 20},
    "the same with penalties": {"sampling": {"top_k": 64, "top_p": 0.95, "repetition_penalty": 1.1}},
}


class HandingOver:
    """Processor time of this thread in `mx.async_eval`, while this is entered."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._real: Any = mx.async_eval

    def __enter__(self) -> HandingOver:
        mx.async_eval = self._timed
        return self

    def __exit__(self, *_: object) -> None:
        mx.async_eval = self._real

    def _timed(self, *arrays: Any) -> None:
        start = time.thread_time()
        self._real(*arrays)
        self.seconds += time.thread_time() - start


def host_ms(
    rows: int, sampling: dict[str, Any], steps: int, vocabulary: int = _SMALL, **fields: Any
) -> tuple[float, float]:
    """Of a step, the medians: all of it, and what handing over takes of it."""
    batch = Batch(Nothing(vocabulary), vocabulary)
    for id in range(rows):
        request = Generate(
            id=id,
            prompt=[1 + id] * 20,
            max_tokens=10**6,
            stop_tokens=[],
            sampling=Sampling(seed=id, **sampling),
            **fields,
        )
        layer = KVCache()
        layer.update_and_fetch(mx.zeros((1, 1, 19, 1)), mx.zeros((1, 1, 19, 1)))
        batch.add([Newcomer(request, [layer])])
    taken, handing = [], []
    for _ in range(steps):
        mx.synchronize()
        with HandingOver() as over:
            start = time.thread_time()
            batch.step([], [])
            taken.append(time.thread_time() - start)
        handing.append(over.seconds)
    return 1000 * median(taken), 1000 * median(handing)


def figures(steps: int) -> list[Figure]:
    # The first one pays for what a process does once.
    host_ms(1, KINDS["greedy"]["sampling"], steps)
    cases = [("1 row, greedy", 1, _SMALL, KINDS["greedy"])]
    for vocabulary, suffix in ((_SMALL, ""), (_LARGE, f", {_LARGE:,} tokens")):
        cases += [(f"{ROWS} rows, {name}{suffix}", ROWS, vocabulary, kind) for name, kind in KINDS.items()]
    made = []
    for label, rows, vocabulary, kind in cases:
        taken, handing = host_ms(rows, steps=steps, vocabulary=vocabulary, **kind)
        made += [Figure(label, "ms", None, taken, _BOUND), Figure(f"{label}: handing over", "ms", None, handing)]
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.host")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    args = parser.parse_args()
    before = disturbance()
    title = f"Host time of a decode step beside the model, a vocabulary of {_SMALL:,}"
    result = Result("host", title, "", setup(), tuple(figures(args.steps)))
    print("\n".join(lines(result)))
    if disturbed := before or disturbance():
        print(f"  NOT RECORDED: {disturbed}.")
        return 1
    write(result, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
