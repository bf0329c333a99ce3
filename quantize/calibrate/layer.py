"""Calibrating one layer: two copies of it, one in full precision and one that is quantized stage by stage.

The full one runs once over every chunk and leaves, on disk, what its matrices are given. Then, for each stage, the
other runs as far as the stage: with what both were given the stage's matrices are solved and put into it. What a part
of the layer returns once all of its matrices are solved is kept, not computed again. Both copies send every token to
the experts that full precision chose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from quantize.calibrate.given import (
    Given,
    experts_of,
    given,
    given_to_experts,
    note_returned,
    note_worths,
    noting,
    rows_for,
    rows_of,
)
from quantize.calibrate.recipe import Solved
from quantize.calibrate.row_worths import PartCall, noting_call
from quantize.calibrate.settings import SolverSettings
from quantize.calibrate.settled import SettledParts
from quantize.calibrate.stage_solution import Matrix, solve_stage
from quantize.calibrate.stages import Stage, find_stages, parts_of_experts
from quantize.calibrate.tokens import TextChunk
from quantize.folder.quant_spec import QuantSpec
from quantize.forward.capture import arrays_of
from quantize.forward.hooks import Hook, hooked, joined
from quantize.forward.routing import recorded, replayed
from quantize.forward.store import Store
from quantize.forward.stream import Stream

LayerProgress = Callable[[float], None]


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
    _settled: SettledParts = field(init=False)

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
        self._settled = SettledParts(self._stages, self.taps)
        routers = {path: modules[path] for path in self.routers}
        for chunk in range(len(self.chunks)):
            args, kwargs = self.streams.full.inputs(self.number, chunk)
            notes: dict[str, mx.array] = {}
            calls: dict[str, PartCall] = {}
            hooks = [noting_call(path, calls) for path in parts_of_experts(self._stages)]
            hooks += [hook for number, stage in enumerate(self._stages) for hook in noting(number, stage, notes)]
            with recorded(routers) as choices, hooked(joined(modules, hooks)):
                returned = layer(*args, **kwargs)
            self.streams.full.keep(self.number, chunk, returned)
            note_returned(self._stages, arrays_of(returned)[0], notes)
            note_worths(self._stages, modules, calls, notes)
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
            hooks = [*noting(number, stage, notes, behind=False), (stage.paths[0], _end)]
            hooks += self._settled_hooks(number, chunk, modules, [path for path, _ in hooks])
            with self._replayed(modules, chunk), hooked(joined(modules, hooks)), suppress(_Ended):
                layer(*args, **kwargs)
            self.taps.put(_key("quantized", chunk), notes)

    def _run_quantized(self, layer: Any) -> None:
        modules = dict(layer.named_modules())
        for chunk in range(len(self.chunks)):
            args, kwargs = self.streams.quantized.inputs(self.number, chunk)
            hooks = self._settled_hooks(len(self._stages), chunk, modules, [])
            with self._replayed(modules, chunk), hooked(joined(modules, hooks)):
                self.streams.quantized.keep(self.number, chunk, layer(*args, **kwargs))
            for stream in ("full", "quantized"):
                self.taps.drop(_key(stream, chunk))
        self._settled.drop()

    def _settled_hooks(
        self, number: int, chunk: int, modules: Mapping[str, Any], noted: Sequence[str]
    ) -> list[tuple[str, Hook]]:
        return self._settled.hooks(number, chunk, modules, _key("quantized", chunk), noted)

    def _replayed(self, modules: Mapping[str, Any], chunk: int) -> Any:
        return replayed({path: modules[path] for path in self.routers}, self._choices[chunk])

    def _solve(self, number: int, stage: Stage, weights: Mapping[str, mx.array]) -> dict[str, Solved]:
        def read(chunk: int, block: range | None) -> Given:
            full, quantized = (_key(stream, chunk) for stream in ("full", "quantized"))
            if block is None:
                return given(number, stage, self.taps.get(full), self.taps.get(quantized))
            notes = self.taps.get(full)
            rows = rows_for(np.array(notes[experts_of(number)]), block)
            inputs, wanted = (
                self.taps.rows(key, rows_of(number), rows).astype(mx.float32) for key in (quantized, full)
            )
            return given_to_experts(number, stage, notes, inputs, wanted, rows)

        # Heads that are given the same are one matrix.
        flat = weights if stage.experts else {path: one.reshape(-1, one.shape[-1]) for path, one in weights.items()}
        solved = solve_stage(self.number, flat, self.matrices, self.chunks, read, self.settings, experts=stage.experts)
        return {path: one.stacked_as(weights[path].shape) for path, one in solved.items()}


class _Ended(Exception):
    """What comes after the stage is not needed."""


def _end(call: Any, *args: Any, **kwargs: Any) -> Any:
    raise _Ended


def _key(stream: str, chunk: int) -> str:
    return f"{stream}-{chunk:05d}"


def _values(solved: Solved, spec: QuantSpec, dtype: mx.Dtype) -> mx.array:
    scales, biases = solved.scales.astype(dtype), solved.biases.astype(dtype)
    return mx.dequantize(solved.weight, scales, biases, group_size=spec.group_size, bits=spec.bits)


def _rounded(weight: mx.array, matrix: Matrix) -> mx.array:
    codes, scales, biases = mx.quantize(weight.astype(matrix.dtype), matrix.spec.group_size, matrix.spec.bits)
    return _values(Solved(codes, scales, biases, ()), matrix.spec, weight.dtype)
