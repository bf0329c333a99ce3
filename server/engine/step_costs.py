"""What a decode step costs here: by how many sequences share it, and by what is asked of their draws.

For `configi doctor`, in the process of `pass_costs.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import mlx.nn as nn

from server.engine.batch import Batch
from server.engine.decoder import Newcomer
from server.engine.device.device import Device
from server.engine.float32_logits import Float32Logits
from server.engine.prefill import Prefill
from server.engine.rehearsal import rehearse
from server.engine_client.protocol import Generate, Sampling

ROWS = (1, 2, 4, 8)
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"sampling": Sampling(seed=0, temperature=0)},
    "sampled": {"sampling": Sampling(seed=0, top_p=0.95, top_k=64)},
    "logprobs": {"sampling": Sampling(seed=0, temperature=0), "top_logprobs": 5},
}
_PROMPT = 32
# The first steps make what the others use.
_UNTIMED, _TIMED = 2, 5

Seconds = dict[str, dict[int, float]]


def fit(seconds: Mapping[int, float]) -> dict[str, float | None]:
    """Of steps that took `seconds` by their rows: `decode_s` is that of one, of which each further row takes
    `row_share`. None where they were not measured."""
    alone = seconds.get(1)
    shares = [(taken / alone - 1) / (rows - 1) for rows, taken in seconds.items() if rows > 1] if alone else []
    return {"decode_s": alone, "row_share": max(0.0, sum(shares) / len(shares)) if shares else None}


def measure(
    step_s: Callable[[str, int], float], budget_s: float, clock: Callable[[], float] = time.monotonic
) -> Seconds:
    """Seconds of a step by kind and rows, few rows first; those for which there was no time left out. `step_s` measures
    one."""
    start, expected = clock(), 0.0
    taken: Seconds = {kind: {} for kind in KINDS}
    for rows in ROWS:
        for kind in KINDS:
            before = clock()
            if before - start + expected > budget_s:
                return taken
            taken[kind][rows] = step_s(kind, rows)
            expected = clock() - before
    return taken


def steps_of(model: nn.Module, vocab_size: int) -> Callable[[str, int], float]:
    """Measures the fastest of a few steps of the model. Raises LoadError where it cannot answer."""
    together, ahead = rehearse(model, vocab_size), Device().works_ahead
    wrapped = Float32Logits(model)

    def step_s(kind: str, rows: int) -> float:
        batch = Batch(wrapped, vocab_size, merged=together.decode)
        batch.add([_newcomer(wrapped, vocab_size, id, KINDS[kind]) for id in range(rows)])
        return min([_timed(batch, ahead=ahead) for _ in range(_UNTIMED + _TIMED)][_UNTIMED:])

    return step_s


def _timed(batch: Batch, *, ahead: bool) -> float:
    begun = time.monotonic()
    batch.step([], [], ahead=ahead)
    return time.monotonic() - begun


def _newcomer(model: Any, vocab_size: int, id: int, fields: Mapping[str, Any]) -> Newcomer:
    prompt = [(at + id) % vocab_size for at in range(1, _PROMPT + 1)]
    request = Generate(id=id, prompt=prompt, max_tokens=_UNTIMED + _TIMED + 1, stop_tokens=[], **fields)
    prefill = Prefill(model, request)
    prefill.start(None, 0)
    prefill.read(prefill.unread)
    return Newcomer(request, prefill.layers)
