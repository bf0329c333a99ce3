"""Calibrating one layer: two copies of it, one in full precision and one that is quantized stage by stage.

The full one runs once over every chunk and leaves, on disk, what its matrices are given. Then, for each stage, the
other runs as far as the stage: with what both were given the stage's matrices are solved and put into it. What a part
of the layer returns once all of its matrices are solved is kept, not computed again. Both copies send every token to
the experts that full precision chose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from quantize.calibrate.guard import HeldBack, hold_back, merge_held_back
from quantize.calibrate.recipe import Solved, SolverSettings, solve
from quantize.calibrate.stages import Stage, child_of, find_stages, token_rms
from quantize.calibrate.statistics import Statistics, measure, merge
from quantize.calibrate.tokens import TextChunk
from quantize.errors import SourceError
from quantize.folder.finite import all_finite
from quantize.folder.quant_spec import QuantSpec
from quantize.forward.hooks import Hook, hooked
from quantize.forward.store import Store
from quantize.forward.stream import Stream
from quantize.forward.taps import by_expert, recorded, replayed

# What a call of the solver may take. Part of what determines the bytes: sums of another block may add up otherwise.
BLOCK_BYTES = 2_000_000_000
# Held-back text, by whether other text of its kind was calibrated on.
COVERED, UNCOVERED = "covered", "uncovered"
LayerProgress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of a layer, or stacked experts. `dtype`: the source's, that of scales and biases."""

    spec: QuantSpec
    dtype: mx.Dtype
    shared_inputs: bool = False


@dataclass(frozen=True, slots=True)
class Streams:
    """The same chunks through the same model; `quantized` so far."""

    full: Stream
    quantized: Stream


@dataclass(slots=True)
class LayerPass:
    """`matrices` and `routers` by path below the layer. `taps` holds what matrices are given while the layer lasts."""

    number: int
    streams: Streams
    chunks: Sequence[TextChunk]
    matrices: Mapping[str, Matrix]
    routers: Sequence[str]
    taps: Store
    settings: SolverSettings
    told: LayerProgress = lambda share: None
    _choices: list[dict[str, list[Any]]] = field(default_factory=list)
    _stages: list[Stage] = field(default_factory=list)
    _settled: set[str] = field(default_factory=set)

    def run(self) -> dict[str, Solved]:
        """Both streams are kept behind the layer. Raises SourceError: weights or inputs are not finite."""
        self._run_full()
        # Only now, when the weights of the full one are gone.
        quantized = self.streams.quantized.model.make(self.number).layers[self.number]
        solved: dict[str, Solved] = {}
        within = dict(quantized.named_modules())
        for path, matrix in self.matrices.items():
            if not any(path in stage.paths for stage in self._stages):
                within[path].weight = _rounded(within[path].weight, matrix)
        for number, stage in enumerate(self._stages):
            self._tap(number, stage, quantized)
            solved |= self._solve(number, stage, {path: within[path].weight for path in stage.paths})
            for path in stage.paths:
                within[path].weight = _values(solved[path], self.matrices[path].spec, within[path].weight.dtype)
                mx.eval(within[path].weight)
            self.told((number + 2) / (len(self._stages) + 2))
        self._run_quantized(quantized)
        return solved

    def _run_full(self) -> None:
        layer = self.streams.full.model.make(self.number).layers[self.number]
        modules = dict(layer.named_modules())
        args, kwargs = self.streams.full.inputs(self.number, 0)
        self._stages = find_stages(layer, {path: modules[path] for path in self.matrices}, args, kwargs)
        routers = {path: modules[path] for path in self.routers}
        for chunk in range(len(self.chunks)):
            args, kwargs = self.streams.full.inputs(self.number, chunk)
            notes: dict[str, mx.array] = {}
            hooks = [hook for number, stage in enumerate(self._stages) for hook in _notes(number, stage, notes)]
            with recorded(routers) as choices, hooked(_joined(modules, hooks)):
                returned = layer(*args, **kwargs)
            self.streams.full.keep(self.number, chunk, returned)
            self.taps.put(_key("full", chunk), notes)
            mx.eval(choices)
            self._choices.append(choices)
            self.told((chunk + 1) / len(self.chunks) / (len(self._stages) + 2))

    def _tap(self, number: int, stage: Stage, layer: Any) -> None:
        """The quantized layer up to the stage, over every chunk."""
        modules = dict(layer.named_modules())
        for chunk in range(len(self.chunks)):
            args, kwargs = self.streams.quantized.inputs(self.number, chunk)
            notes: dict[str, mx.array] = {}
            hooks = [*_notes(number, stage, notes, norms=False), (stage.paths[0], _end)]
            hooks += self._parts(number, chunk, modules, [path for path, _ in hooks])
            with self._replayed(modules, chunk), hooked(_joined(modules, hooks)), suppress(_Ended):
                layer(*args, **kwargs)
            self.taps.put(_key("quantized", chunk), notes)

    def _run_quantized(self, layer: Any) -> None:
        modules = dict(layer.named_modules())
        for chunk in range(len(self.chunks)):
            args, kwargs = self.streams.quantized.inputs(self.number, chunk)
            parts = self._parts(len(self._stages), chunk, modules, [])
            with self._replayed(modules, chunk), hooked(_joined(modules, parts)):
                self.streams.quantized.keep(self.number, chunk, layer(*args, **kwargs))
            for stream in ("full", "quantized"):
                self.taps.drop(_key(stream, chunk))
        for key in self._settled:
            self.taps.drop(key)

    def _parts(
        self, number: int, chunk: int, modules: Mapping[str, Any], noted: Sequence[str]
    ) -> list[tuple[str, Hook]]:
        """Hooks for each child of the layer whose matrices are all of stages before `number`: it returns what it did
        when it was run so the first time. Not for one with a module that is `noted`."""
        solved = {path: at < number for at, stage in enumerate(self._stages) for path in stage.paths}
        settled = [
            child
            for child in sorted({child_of(path) for path in solved} & modules.keys())
            if all(done for path, done in solved.items() if child_of(path) == child)
            and all(child_of(path) != child for path in noted)
        ]
        return [(child, self._kept(number, chunk, child, modules)) for child in settled]

    def _kept(self, number: int, chunk: int, child: str, modules: Mapping[str, Any]) -> Hook:
        calls = count()
        last = self._stages[number - 1]

        def run(call: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            if last.ends != child:
                return call(x, *args, **kwargs)
            # What the last matrix of all in it was given is still there.
            rows = self.taps.get(_key("quantized", chunk))[f"{number - 1}-rows"]
            return modules[last.paths[0]](rows.reshape(*x.shape[:-1], -1))

        def keep(call: Any, *args: Any, **kwargs: Any) -> Any:
            own = f"settled-{child}-{chunk:05d}-{next(calls)}"
            if own in self._settled:
                return self.taps.get(own)["0"]
            returned = run(call, *args, **kwargs)
            if isinstance(returned, mx.array) and number < len(self._stages):
                self.taps.put(own, {"0": returned})
                self._settled.add(own)
            return returned

        return keep

    def _replayed(self, modules: Mapping[str, Any], chunk: int) -> Any:
        return replayed({path: modules[path] for path in self.routers}, self._choices[chunk])

    def _solve(self, number: int, stage: Stage, weights: Mapping[str, mx.array]) -> dict[str, Solved]:
        """Every matrix of a stage, in blocks of experts, or of rows where there are none."""
        for path, weight in weights.items():
            if not all_finite(np.array(weight.astype(mx.float32), copy=False).data.cast("B"), "F32"):
                raise SourceError(f"Layer {self.number} of the source holds values that are not finite, in {path}.")
        shared = all(self.matrices[path].shared_inputs for path in weights)
        pool = self._pool(number) if stage.experts and shared else None
        parts: dict[str, list[Solved]] = {path: [] for path in weights}
        for experts in _expert_blocks(list(weights.values())) if stage.experts else [None]:
            statistics = self._statistics(number, experts)
            for path, weight in weights.items():
                matrix = self.matrices[path]
                for rows in _row_blocks(weight) if experts is None else [slice(None)]:
                    block = weight[rows] if experts is None else weight[experts.start : experts.stop]
                    own = [one if one.stream is None else replace(one, stream=one.stream[rows]) for one in statistics]
                    held = self._held_back(number, experts, block, rows)
                    block = block.astype(matrix.dtype)
                    parts[path].append(solve(block, own, held, matrix.spec, self.settings, pool))
                    mx.clear_cache()
        return {path: _together(solved) for path, solved in parts.items()}

    def _statistics(self, number: int, experts: range | None) -> list[Statistics]:
        found: list[Statistics | None] = [None for _ in experts or [None]]
        for chunk in range(len(self.chunks)):
            if self.chunks[chunk].held_back:
                continue
            given = self._given(number, chunk)
            for place, expert in enumerate(experts or [None]):
                one, before = measure(*given.of(expert)), found[place]
                found[place] = one if before is None else merge(before, one)
            mx.eval([(one.hessian, one.drift, one.stream) for one in found if one is not None])
        statistics = [one for one in found if one is not None]
        if not all(bool(mx.isfinite(one.hessian).all().item()) for one in statistics):
            raise SourceError(f"Layer {self.number} is given values that are not finite.")
        return statistics

    def _held_back(
        self, number: int, experts: range | None, weight: mx.array, rows: slice
    ) -> list[dict[str, HeldBack]]:
        held: list[dict[str, HeldBack]] = [{} for _ in experts or [None]]
        for chunk in range(len(self.chunks)):
            if not self.chunks[chunk].held_back:
                continue
            given = self._given(number, chunk)
            kind = UNCOVERED if self._is_uncovered(chunk) else COVERED
            for place, expert in enumerate(experts or [None]):
                inputs, full, stream = given.of(expert)
                if len(inputs) == 0:
                    continue
                own = weight if expert is None else weight[place]
                one = hold_back(own, inputs, full, None if stream is None else stream[:, rows])
                before = held[place].get(kind)
                held[place][kind] = one if before is None else merge_held_back(before, one)
            mx.eval([(one.hessian, one.miss) for kinds in held for one in kinds.values()])
        return held

    def _is_uncovered(self, chunk: int) -> bool:
        kind = self.chunks[chunk].kind
        return all(other.held_back for other in self.chunks if other.kind == kind)

    def _pool(self, number: int) -> Statistics:
        pool: Statistics | None = None
        for chunk in range(len(self.chunks)):
            if not self.chunks[chunk].held_back:
                given = self._given(number, chunk)
                one = measure(given.inputs, given.full)
                pool = one if pool is None else merge(pool, one)
                mx.eval(pool.hessian, pool.drift)
        assert pool is not None
        return pool

    def _given(self, number: int, chunk: int) -> _Given:
        full, quantized = (self.taps.get(_key(stream, chunk)) for stream in ("full", "quantized"))
        stream = None
        if f"{number}-before" in full:
            before, after = full[f"{number}-before"], quantized[f"{number}-before"]
            stream = (before.astype(mx.float32) - after.astype(mx.float32)).reshape(-1, before.shape[-1])
            stage = self._stages[number]
            for place, (_, gain) in enumerate(stage.writer.norms if stage.writer else ()):
                stream = stream * full[f"{number}-rms-{place}"].reshape(-1, 1) / gain
        experts = full.get(f"{number}-experts")
        return _Given(
            quantized[f"{number}-rows"].astype(mx.float32),
            full[f"{number}-rows"].astype(mx.float32),
            stream,
            None if experts is None else np.array(experts),
        )


@dataclass(frozen=True, slots=True)
class _Given:
    """Of one chunk and stage: Xq, Xf, R, and the expert of each row."""

    inputs: mx.array
    full: mx.array
    stream: mx.array | None
    experts: npt.NDArray[np.uint32] | None

    def of(self, expert: int | None) -> tuple[mx.array, mx.array, mx.array | None]:
        if expert is None or self.experts is None:
            return self.inputs, self.full, self.stream
        chosen = mx.array(np.nonzero(self.experts == expert)[0].astype(np.int32))
        return self.inputs[chosen], self.full[chosen], None


class _Ended(Exception):
    """What comes after the stage is not needed."""


def _end(call: Any, *args: Any, **kwargs: Any) -> Any:
    raise _Ended


def _key(stream: str, chunk: int) -> str:
    return f"{stream}-{chunk:05d}"


def _notes(number: int, stage: Stage, notes: dict[str, mx.array], *, norms: bool = True) -> list[tuple[str, Hook]]:
    """Hooks, by path, that note what the solver needs of a run: the stage's input, and of the stream around it."""

    def inputs(call: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        if stage.experts:
            notes[f"{number}-rows"], notes[f"{number}-experts"] = by_expert(x, args[0])
        else:
            notes[f"{number}-rows"] = x.reshape(-1, x.shape[-1])
        return call(x, *args, **kwargs)

    def before(call: Any, x: mx.array) -> Any:
        notes[f"{number}-before"] = x
        return call(x)

    def rms(place: int) -> Hook:
        def note(call: Any, x: mx.array) -> Any:
            notes[f"{number}-rms-{place}"] = token_rms(x)
            return call(x)

        return note

    hooks: list[tuple[str, Hook]] = [(stage.paths[0], inputs)]
    if stage.writer is not None:
        hooks.append((stage.writer.before, before))
        if norms:
            hooks += [(path, rms(place)) for place, (path, _) in enumerate(stage.writer.norms)]
    return hooks


def _joined(modules: Mapping[str, Any], hooks: Sequence[tuple[str, Hook]]) -> list[tuple[Any, Hook]]:
    """One hook a module, which does what all of its hooks do: the first is the outermost."""
    by_path: dict[str, list[Hook]] = {}
    for path, hook in hooks:
        by_path.setdefault(path, []).append(hook)
    return [(modules[path], _chained(chain)) for path, chain in by_path.items()]


def _chained(chain: Sequence[Hook]) -> Hook:
    if len(chain) == 1:
        return chain[0]
    first, *rest = chain

    def both(call: Any, *args: Any, **kwargs: Any) -> Any:
        return first(lambda *a, **k: _chained(rest)(call, *a, **k), *args, **kwargs)

    return both


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


def solver_bytes(rows: int, columns: int) -> int:
    """What `solve` says that it needs."""
    return 4 * columns * (8 * columns + 20 * rows)


def _together(parts: Sequence[Solved]) -> Solved:
    weight, scales, biases = (
        mx.concatenate([getattr(part, name) for part in parts]) for name in ("weight", "scales", "biases")
    )
    return Solved(weight, scales, biases, tuple(report for part in parts for report in part.reports))


def _values(solved: Solved, spec: QuantSpec, dtype: mx.Dtype) -> mx.array:
    scales, biases = solved.scales.astype(dtype), solved.biases.astype(dtype)
    return mx.dequantize(solved.weight, scales, biases, group_size=spec.group_size, bits=spec.bits)


def _rounded(weight: mx.array, matrix: Matrix) -> mx.array:
    codes, scales, biases = mx.quantize(weight.astype(matrix.dtype), matrix.spec.group_size, matrix.spec.bits)
    return _values(Solved(codes, scales, biases, ()), matrix.spec, weight.dtype)
