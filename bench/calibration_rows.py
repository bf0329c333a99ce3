"""One row of `bench.calibration`: a model made in one way, in a process of its own with a bound on its time.

`python -m bench.calibration_rows ROW SOURCE POLICY TOKENS OUTPUT [ROUNDED]`; exits with 1 and one sentence on stderr
where the way does not know such a model or widths.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from mlx_lm.utils import load_tokenizer

from bench.setup import ROOT, environment
from quantize.build.build import build
from quantize.calibrate.calibration import Calibration, allocated, open_source
from quantize.calibrate.corpus import calibration_text
from quantize.calibrate.settings import SolverSettings
from quantize.calibrate.tokens import LENGTH, cut
from quantize.errors import QuantizeError
from quantize.plan.plan import make_plan
from quantize.progress import silent
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint

ROUNDING = "rounding"
# What the recipe consists of, step by step, and the recipe with the policy's bytes spent where they are worth most.
METHODS = ("weighted", "gptq", "recipe")
ALLOCATED = "allocated"


@dataclass(frozen=True, slots=True)
class Row:
    """`tokens`: of calibration. `rounded`: what ROUNDING made, for the tools that start from it."""

    name: str
    source: Path
    policy: str
    tokens: int
    output: Path
    rounded: Path | None = None


class NoRow(Exception):
    """One sentence: why there is no such model."""


def make_apart(row: Row, limit_s: float) -> float:
    """The model in `row.output`; the seconds that it took. Raises NoRow."""
    given = [row.name, row.source, row.policy, row.tokens, row.output, *([row.rounded] if row.rounded else [])]
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.calibration_rows", *map(str, given)],
            cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=limit_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoRow(f"It was not done within {limit_s / 60:.0f} minutes.") from None
    if done.returncode != 0:
        raise NoRow((done.stderr.strip().splitlines() or ["It ended without a word."])[-1])
    return time.perf_counter() - began


def make(row: Row) -> None:
    """Raises QuantizeError."""
    checkpoint = open_checkpoint(str(row.source), HubOptions())
    if row.name == ROUNDING:
        build(checkpoint, make_plan(checkpoint, row.policy), row.output)
    elif row.name in (*METHODS, ALLOCATED):
        _calibrated(row)
    else:
        _by_another(row)


def _calibrated(row: Row) -> None:
    checkpoint, model = open_checkpoint(str(row.source), HubOptions()), open_source(str(row.source), HubOptions())
    method = "recipe" if row.name == ALLOCATED else row.name
    calibration = Calibration(calibration_text(), row.tokens, msgspec.convert({"method": method}, SolverSettings))
    plan = make_plan(checkpoint, row.policy, calibration=calibration.identity)
    if row.name == ALLOCATED:
        budget = plan.tensor_bytes
        widths = allocated(calibration, budget, plan, model, checkpoint.auxiliary_files(), silent)
        plan = make_plan(checkpoint, row.policy, calibration=calibration.identity, widths=widths)
    build(checkpoint, plan, row.output, calibrate=partial(calibration.run, model))


def _by_another(row: Row) -> None:
    # Imported by its own rows only: it loads all that mlx-lm trains with.
    from bench.other_quantizers import TOOLS, Task

    plan = make_plan(open_checkpoint(str(row.source), HubOptions()), row.policy)
    bits = {output.spec.bits for output in plan.tensors if output.spec is not None}
    chunks = cut(calibration_text(), load_tokenizer(row.source), row.tokens)
    whole = [one for one in chunks if len(one.tokens) == LENGTH]
    used, held_back = ([list(one.tokens) for one in whole if one.held_back is held] for held in (False, True))
    assert row.rounded is not None
    width = bits.pop() if len(bits) == 1 else None
    TOOLS[row.name](Task(row.source, row.rounded, width, plan.tensor_bytes, used, held_back, row.output))


def main() -> None:
    name, source, policy, tokens, output, *rounded = sys.argv[1:]
    row = Row(name, Path(source), policy, int(tokens), Path(output), Path(rounded[0]) if rounded else None)
    try:
        make(row)
    except QuantizeError as error:
        print(error.message, file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
