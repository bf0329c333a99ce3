"""What a calibration will take, from the plan alone: memory and disk at most, and time by this machine's own speed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx

from quantize.calibrate.prepared import prepare
from quantize.calibrate.recipe import solve
from quantize.calibrate.settings import SolverSettings
from quantize.calibrate.stage_solution import BLOCK_BYTES, solver_bytes
from quantize.calibrate.statistics import measure
from quantize.errors import PolicyError, QuantizeError
from quantize.folder.quant_spec import QuantSpec
from quantize.plan.output_tensor import OutputTensor
from quantize.plan.plan import Plan
from quantize.source.families import text_config

# Python, MLX, mlx-lm's model classes and tokenizer, a tree of unevaluated weights, what malloc and MLX retain.
_BASE_BYTES = 500_000_000
# Of a layer in memory: itself, and the matrix that is being replaced or read.
_LAYERS = 1.5
# Of statistics beside the solver's own arrays: a block's, and those of the chunk that is added.
_STATISTICS = 6
# Forward passes of a layer: the full one, the parts up to each stage, the quantized one.
_PASSES = 5
# Products of the size of a matrix and its Hessian in one solution: factors, target, descent, refits, guard.
_PRODUCTS = 20
# Sizes of matrices.
_WARM_UP, _PROBE = 128, 1024
_SPEC = QuantSpec(2, 64)


@dataclass(frozen=True, slots=True)
class Estimate:
    """`operations`: multiplications and additions in large products."""

    memory_bytes: int
    disk_bytes: int
    operations: int

    @property
    def seconds(self) -> float:
        """Takes a moment: this machine's speed is measured."""
        return self.operations / _speed()

    def check(self, limit: int) -> None:
        """Raises QuantizeError where `limit`, in bytes, is too small."""
        if self.memory_bytes > limit:
            least, given = self.memory_bytes / 1e9, limit / 1e9
            raise QuantizeError(
                f"Calibrating this model needs a memory limit of at least {least:.2f} GB; its limit is {given:.2f} GB."
            )


def estimate(plan: Plan, tokens: int) -> Estimate:
    """Raises PolicyError where there is nothing to calibrate."""
    layers: dict[int | None, list[OutputTensor]] = {}
    for output in plan.tensors:
        layers.setdefault(output.layer, []).append(output)
    # The CPU computes in float32, whatever the source has.
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    width = 4 if on_cpu else 2
    # A table is read whole before it is made float32.
    outside = (width + 2 * on_cpu) * sum(output.parameters for output in layers.pop(None, []))
    largest = max(width * sum(output.parameters for output in layer) for layer in layers.values())
    solved = [output for layer in layers.values() for output in layer if output.spec is not None]
    if not solved:
        name = plan.policy.name
        raise PolicyError(f"The policy {name} quantizes nothing within the layers: build without --calibrate.")
    solving = max(_solving(output) for output in solved)
    hidden = next((output.shape[-1] for output in plan.tensors if output.role == "embedding"), 0)
    given = max((_given(plan, layer) for layer in layers.values()), default=0)
    stored = sum(output.nbytes for output in solved)
    operations = sum(_operations(plan, output, tokens) for output in solved)
    memory = _BASE_BYTES + max(outside, int(_LAYERS * largest) + solving)
    # Both streams before and behind a layer, what two of its parts returned, what three norms behind its matrices and
    # the matrices themselves are given in full precision, and of one stage in both.
    return Estimate(memory, stored + tokens * width * (9 * hidden + 2 * given), operations)


def _solving(output: OutputTensor) -> int:
    rows, columns = output.shape[-2:]
    whole = solver_bytes(rows, columns)
    stack = whole * output.shape[0] if len(output.shape) == 3 else whole
    one = whole if len(output.shape) == 3 else solver_bytes(64, columns)
    return max(min(stack, BLOCK_BYTES), one) + _STATISTICS * 4 * columns**2


def _given(plan: Plan, layer: Iterable[OutputTensor]) -> int:
    """Numbers a token: the widest input of each role; those of attention are the hidden state and what it gathers."""
    widest: dict[str, int] = {}
    for output in layer:
        if output.spec is not None:
            own = _share(plan, output) * output.shape[-1] * (2 if output.role == "attention" else 1)
            widest[output.role] = max(widest.get(output.role, 0), own)
    return sum(widest.values())


def _operations(plan: Plan, output: OutputTensor, tokens: int) -> int:
    rows, columns = output.shape[-2:]
    matrices = output.shape[0] if len(output.shape) == 3 else 1
    seen = tokens * _share(plan, output)
    forward, sums = 2 * _PASSES * seen * rows * columns, 4 * seen * columns**2
    return int(forward + sums + 2 * _PRODUCTS * matrices * rows * columns**2)


def _share(plan: Plan, output: OutputTensor) -> int:
    """Rows that a token is to a matrix: of stacked experts, as many as a token is sent to."""
    if len(output.shape) < 3:
        return 1
    config = text_config(plan.config)
    chosen = next((config[key] for key in ("top_k_experts", "num_experts_per_tok") if config.get(key)), 1)
    return int(chosen)


def _speed() -> float:
    """Multiplications and additions a second in a solution, whose steps between its products cost as much as they."""
    _solution(_WARM_UP)
    return 2 * _PRODUCTS * _PROBE**3 / _solution(_PROBE)


def _solution(size: int) -> float:
    """Seconds for a square matrix."""
    inputs = mx.random.normal((size // 4, size))
    statistics, weight, settings = measure(inputs, inputs), mx.random.normal((size, size)), SolverSettings()
    mx.eval(statistics.hessian, statistics.drift, weight)
    began = time.perf_counter()
    mx.eval(solve(weight, prepare([statistics], settings), [{}], _SPEC, settings).weight)
    return time.perf_counter() - began
