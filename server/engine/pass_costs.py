"""What a forward pass costs here: `python -m server.engine.pass_costs FOLDER SECONDS`, JSON on stdout.

For `configi doctor`: loads the model in FOLDER, reads chunks of several sizes and decodes, within about SECONDS, and
fits a pass of n tokens as `sweep_s + n * token_s`. A process of its own: it takes MLX and the memory of the model.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantize.printable import print_json

# Around the size from which a mixture of experts takes the kernel that sorts its tokens.
SIZES = (16, 32, 63, 64, 128, 512)
_CLIFF = 64
# Smaller chunks that take this much longer than the line through the larger ones says are below a cliff.
_STEEP = 1.25
_REPEATS = 3


def fit(seconds: Mapping[int, float]) -> dict[str, float | int | None]:
    """The constants of the passes that took `seconds` by their tokens; None where too few sizes were measured.

    `cliff_tokens`: below so many, tokens cost `cliff_factor` times as much; 1 where there is no cliff.
    """
    above = {size: taken for size, taken in seconds.items() if size >= _CLIFF}
    if len(above) < 2:
        return {"sweep_s": None, "token_s": None, "cliff_tokens": None, "cliff_factor": None}
    # By relative error, or the largest chunk would decide alone.
    weight = {size: 1 / taken**2 for size, taken in above.items()}
    total = sum(weight.values())
    mean_n = sum(weight[n] * n for n in above) / total
    mean_s = sum(weight[n] * above[n] for n in above) / total
    spread = sum(weight[n] * (n - mean_n) ** 2 for n in above)
    token_s = max(0.0, sum(weight[n] * (n - mean_n) * (above[n] - mean_s) for n in above) / spread)
    sweep_s = max(0.0, mean_s - token_s * mean_n)
    below = [taken / (sweep_s + n * token_s) for n, taken in seconds.items() if n < _CLIFF]
    steep = bool(below) and min(below) > _STEEP and token_s > 0
    costs = [(taken - sweep_s) / (n * token_s) for n, taken in seconds.items() if n < _CLIFF] if steep else []
    return {
        "sweep_s": sweep_s,
        "token_s": token_s,
        "cliff_tokens": _CLIFF if steep else 1,
        "cliff_factor": sum(costs) / len(costs) if costs else 1.0,
    }


def measure(
    read: Callable[[int], None], budget_s: float, clock: Callable[[], float] = time.monotonic
) -> dict[int, float]:
    """The fastest of a few passes of each size; the sizes for which there was no time left out."""
    start = clock()
    taken: dict[int, float] = {}
    for size in SIZES:
        # As long as the last one of its kind would take, at least.
        expected = max(taken.values(), default=0.0) * (size / max(taken, default=size))
        for _ in range(_REPEATS):
            if clock() - start + expected > budget_s:
                break
            before = clock()
            read(size)
            expected = clock() - before
            taken[size] = min(taken.get(size, expected), expected)
    return taken


def main() -> None:
    from quantize.mlx_lm_alone import import_mlx_lm_alone

    import_mlx_lm_alone()
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    from server.engine import kv, step_costs
    from server.engine.loading import load

    folder, budget_s = Path(sys.argv[1]), float(sys.argv[2])
    model, vocab_size, weights = load(folder)

    def read(size: int) -> None:
        layers = make_prompt_cache(model)
        model(mx.arange(1, size + 1)[None] % vocab_size, cache=layers)
        kv.evaluate(layers)

    read(SIZES[-1] if mx.metal.is_available() else SIZES[0])
    seconds = measure(read, budget_s / 2)
    steps = step_costs.measure(step_costs.steps_of(model, vocab_size), budget_s / 2)
    report: dict[str, Any] = {
        **fit(seconds),
        "weight_bytes": weights,
        "chunk_seconds": {str(n): s for n, s in seconds.items()},
        **step_costs.fit(steps["greedy"]),
        "step_seconds": {kind: {str(rows): s for rows, s in taken.items()} for kind, taken in steps.items()},
    }
    print_json(report)


if __name__ == "__main__":
    main()
