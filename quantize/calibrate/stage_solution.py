"""Solving the matrices of one stage, from what they are given chunk by chunk, in blocks that memory holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from quantize.calibrate.given import Given
from quantize.calibrate.guard import HeldBack, hold_back, merge_held_back
from quantize.calibrate.prepared import prepare
from quantize.calibrate.recipe import Solved, solve
from quantize.calibrate.settings import SolverSettings
from quantize.calibrate.statistics import Statistics, Sums
from quantize.calibrate.tokens import TextChunk
from quantize.errors import SourceError
from quantize.folder.quant_spec import QuantSpec

# What a call of the solver may take. Part of what determines the bytes: sums of another block may add up otherwise.
BLOCK_BYTES = 2_000_000_000
# Held-back text, by whether other text of its kind was calibrated on.
COVERED, UNCOVERED = "covered", "uncovered"


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of a layer, or stacked experts. `dtype`: the source's, that of scales and biases."""

    spec: QuantSpec
    dtype: mx.Dtype
    shared_inputs: bool = False


def solve_stage(
    layer: int,
    weights: Mapping[str, mx.array],
    matrices: Mapping[str, Matrix],
    chunks: Sequence[TextChunk],
    given: Callable[[int, range | None], Given],
    settings: SolverSettings,
    *,
    experts: bool,
) -> dict[str, Solved]:
    """Every matrix of a stage by path, in blocks of experts, or of rows where there are none.

    layer: its number, for errors; given: of a chunk by its number and of a block of experts, or of all of it, asked for
    several times. Raises SourceError: weights or inputs are not finite.
    """
    for path, weight in weights.items():
        # One expert at a time: a layer's are gigabytes.
        if not all(bool(mx.isfinite(part).all().item()) for part in (weight if weight.ndim == 3 else [weight])):
            raise SourceError(f"Layer {layer} of the source holds values that are not finite, in {path}.")
    work = _Stage(chunks, given)
    shared = all(matrices[path].shared_inputs for path in weights)
    pool = work.pool() if experts and shared else None
    parts: dict[str, list[Solved]] = {path: [] for path in weights}
    for block in _expert_blocks(list(weights.values())) if experts else [None]:
        statistics = work.statistics(block)
        if not all(bool(mx.isfinite(one.hessian).all().item()) for one in statistics):
            raise SourceError(f"Layer {layer} is given values that are not finite.")
        inputs = prepare(statistics, settings, pool)
        del statistics
        for path, weight in weights.items():
            matrix = matrices[path]
            for rows in _row_blocks(weight) if block is None else [slice(None)]:
                part = weight[rows] if block is None else weight[block.start : block.stop]
                held = work.held_back(block, part, rows)
                parts[path].append(solve(part.astype(matrix.dtype), inputs.rows(rows), held, matrix.spec, settings))
                mx.clear_cache()
        # Or the next block's stand beside them.
        del inputs
    return {path: _together(solved) for path, solved in parts.items()}


def solver_bytes(rows: int, columns: int) -> int:
    """What `solve` says that it needs."""
    return 4 * columns * (8 * columns + 20 * rows)


@dataclass(frozen=True, slots=True)
class _Stage:
    """Sums over the chunks, of the experts of a block, or with None of all rows."""

    chunks: Sequence[TextChunk]
    given: Callable[[int, range | None], Given]

    def statistics(self, experts: range | None) -> list[Statistics]:
        sums = [Sums() for _ in experts or [None]]
        for chunk in self._chunks(held_back=False):
            given = self.given(chunk, experts)
            for one, expert in zip(sums, experts or [None], strict=True):
                one.add(*given.of(expert))
            mx.eval([one.arrays for one in sums])
        return [one.total() for one in sums]

    def held_back(self, experts: range | None, weight: mx.array, rows: slice) -> list[dict[str, HeldBack]]:
        held: list[dict[str, HeldBack]] = [{} for _ in experts or [None]]
        for chunk in self._chunks(held_back=True):
            given = self.given(chunk, experts)
            kind = UNCOVERED if self._is_uncovered(chunk) else COVERED
            for place, expert in enumerate(experts or [None]):
                inputs, full, stream = given.of(expert)
                if len(inputs) == 0:
                    continue
                own = weight if expert is None else weight[place]
                of_rows = None if given.gains is None else given.gains[rows]
                one = hold_back(own, inputs, full, None if stream is None else stream[:, rows], of_rows)
                before = held[place].get(kind)
                held[place][kind] = one if before is None else merge_held_back(before, one)
            mx.eval([one.arrays for kinds in held for one in kinds.values()])
        return held

    def pool(self) -> Statistics:
        sums = Sums()
        for chunk in self._chunks(held_back=False):
            given = self.given(chunk, None)
            sums.add(given.inputs, given.full)
            mx.eval(sums.arrays)
        return sums.total()

    def _chunks(self, *, held_back: bool) -> list[int]:
        return [number for number, chunk in enumerate(self.chunks) if chunk.held_back is held_back]

    def _is_uncovered(self, chunk: int) -> bool:
        kind = self.chunks[chunk].kind
        return all(other.held_back for other in self.chunks if other.kind == kind)


def _expert_blocks(weights: Sequence[mx.array]) -> list[range]:
    """So many experts at a time that the solver keeps to BLOCK_BYTES, but at least one."""
    each = max(solver_bytes(*weight.shape[-2:]) for weight in weights)
    size, total = max(1, BLOCK_BYTES // each), weights[0].shape[0]
    return [range(at, min(at + size, total)) for at in range(0, total, size)]


def _row_blocks(weight: mx.array) -> list[slice]:
    """Rows do not meet, so a large matrix is solved in parts."""
    rows, columns = weight.shape
    size = max(64, (BLOCK_BYTES - solver_bytes(0, columns)) // (solver_bytes(1, columns) - solver_bytes(0, columns)))
    return [slice(at, min(at + size, rows)) for at in range(0, rows, size)]


def _together(parts: Sequence[Solved]) -> Solved:
    weight, scales, biases = (
        mx.concatenate([getattr(part, name) for part in parts]) for name in ("weight", "scales", "biases")
    )
    return Solved(weight, scales, biases, tuple(report for part in parts for report in part.reports))
