"""`--calibrate`: a source, layer by layer, from text to what `Results` holds of every quantized matrix of its layers.

What determines the result is in `Calibration.identity`, and with it in the fingerprint of the build's plan; what more
the machine and the tokenizer add names the folder that the work is kept in. A pass that was ended goes on at its layer:
that one starts again, with the same result.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from quantize.calibrate.corpus import CalibrationText, calibration_text
from quantize.calibrate.layer import LayerPass, Streams
from quantize.calibrate.losses import CHUNKS, widths_within
from quantize.calibrate.quantized_so_far import QuantizedSoFar
from quantize.calibrate.results import Results
from quantize.calibrate.settings import SolverSettings
from quantize.calibrate.stage_solution import BLOCK_BYTES, Matrix
from quantize.calibrate.tokens import LENGTH, TextChunk, cut
from quantize.files import sync
from quantize.folder.manifest import TensorCalibration as Figures
from quantize.folder.quant_spec import QuantSpec
from quantize.forward.models import LazyModel, open_model
from quantize.forward.store import InFolder
from quantize.forward.stream import Stream
from quantize.forward.tokenizer import tokenizer_of
from quantize.plan.output_tensor import OutputTensor
from quantize.plan.plan import Plan
from quantize.progress import Progress
from quantize.source.checkpoint import HubOptions
from quantize.source.folder import DTYPES

DEFAULT_TOKENS = 131_072
# Raised with any change that gives other bytes for the same input.
FORMAT = 8
# What MLX may keep of freed arrays.
_CACHE_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is asked for: the text, how many tokens of it, and how it is solved."""

    text: CalibrationText
    tokens: int = DEFAULT_TOKENS
    settings: SolverSettings = field(default_factory=SolverSettings)

    @property
    def identity(self) -> dict[str, Any]:
        """Equal for equal results, given the source and the plan."""
        return {
            "format": FORMAT,
            "text": self.text.sha256,
            "tokens": self.tokens,
            "chunk": LENGTH,
            "block": BLOCK_BYTES,
            "solver": self.settings.identity(),
        }

    def chunks(self, plan: Plan, auxiliary: Mapping[str, bytes]) -> list[TextChunk]:
        """The text by the tokenizer in `auxiliary`: `tokens`, or as many as there are. Raises QuantizeError."""
        return cut(self.text, tokenizer_of(plan.config, auxiliary, "the source"), self.tokens)

    def held(self, plan: Plan, auxiliary: Mapping[str, bytes]) -> int:
        """Tokens that there are, which may be fewer than were asked for."""
        return sum(len(chunk.tokens) for chunk in self.chunks(plan, auxiliary))

    def run(
        self, model: LazyModel, plan: Plan, auxiliary: Mapping[str, bytes], folder: Path, progress: Progress
    ) -> CalibratedWeights:
        """`folder` keeps the work. Raises QuantizeError."""
        folder.mkdir(parents=True, exist_ok=True)
        chunks = self.chunks(plan, auxiliary)
        own = folder / _name(plan, chunks, model)
        for other in folder.iterdir():
            if other != own:
                shutil.rmtree(other)
        own.mkdir(exist_ok=True)
        results = Results(own)
        _Run(model, plan, chunks, results, self.settings, progress).layers()
        used, held = Counter[str](), Counter[str]()
        for chunk in chunks:
            (held if chunk.held_back else used)[chunk.kind] += len(chunk.tokens)
        figures = {path: one for layer in _layers(plan) for path, one in results.reports(layer).items()}
        return CalibratedWeights(results, dict(used), dict(held), figures)


@dataclass(frozen=True, slots=True)
class CalibratedWeights:
    """`kinds`, `held_back`: tokens for the solver and for the guard, by kind. `figures`: by path of the module."""

    results: Results
    kinds: Mapping[str, int]
    held_back: Mapping[str, int]
    figures: Mapping[str, Figures]


def read_calibration(data: Path | None, tokens: int = DEFAULT_TOKENS) -> Calibration:
    """`data`: the user's own text instead of the shipped one. Raises CalibrationTextError."""
    return Calibration(calibration_text(data), tokens)


def allocated(
    calibration: Calibration,
    budget: int,
    plan: Plan,
    model: LazyModel,
    auxiliary: Mapping[str, bytes],
    progress: Progress,
) -> dict[str, QuantSpec]:
    """Widths within `budget` bytes of tensors, by loss on some of the calibration's text. Raises PolicyError."""
    mx.set_cache_limit(_CACHE_BYTES)
    chunks = cut(calibration.text, tokenizer_of(plan.config, auxiliary, "the source"), CHUNKS * LENGTH)
    used = [chunk for chunk in chunks if not chunk.held_back][:CHUNKS]
    return widths_within(budget, plan, model, [mx.array([list(chunk.tokens)]) for chunk in used], progress)


def open_source(source: str, hub: HubOptions) -> LazyModel:
    """As a calibration runs it: MLX's CPU backend has no experts in bfloat16. Raises SourceError."""
    return open_model(source, hub, float32=mx.default_device() == mx.Device(mx.cpu))


def matrices_of(plan: Plan, layer: int) -> dict[str, OutputTensor]:
    """By the module's path, the tensors of a layer that are quantized."""
    return {output.path: output for output in plan.tensors if output.layer == layer and output.spec is not None}


def _layers(plan: Plan) -> list[int]:
    return sorted({output.layer for output in plan.tensors if output.layer is not None})


class _Run:
    def __init__(
        self,
        model: LazyModel,
        plan: Plan,
        chunks: Sequence[TextChunk],
        results: Results,
        settings: SolverSettings,
        progress: Progress,
    ) -> None:
        self._model = model
        self._plan = plan
        self._chunks = chunks
        self._results = results
        self._settings = settings
        self._progress = progress

    def layers(self) -> None:
        prefixes = _prefixes(self._model)
        total = len(prefixes)
        if all(self._results.has(layer) for layer in range(total)):
            return
        tokens = [mx.array([list(chunk.tokens)]) for chunk in self._chunks]
        folder = self._results.folder
        streams = Streams(
            Stream(self._model, tokens, InFolder(folder / "full")),
            Stream(QuantizedSoFar(self._model, self._plan), tokens, InFolder(folder / "quantized")),
        )
        taps = InFolder(folder / "taps")
        mx.set_cache_limit(_CACHE_BYTES)
        for layer in range(total):
            if not self._results.has(layer):
                told = self._told(layer, total)
                told(0)
                self._layer(layer, prefixes[layer], streams, taps, told)
            for stream in (streams.full, streams.quantized):
                stream.forget(layer)
        for name in ("full", "quantized", "taps"):
            shutil.rmtree(folder / name)

    def _layer(self, layer: int, prefix: str, streams: Streams, taps: InFolder, told: Callable[[float], None]) -> None:
        outputs = {path.removeprefix(f"{prefix}."): out for path, out in matrices_of(self._plan, layer).items()}
        routers = [
            output.path.removeprefix(f"{prefix}.")
            for output in self._plan.tensors
            if output.layer == layer and output.role == "router" and output.name.endswith(".weight")
        ]
        matrices = {
            path: Matrix(output.spec, DTYPES[output.dtype], output.role == "expert_gate_up")
            for path, output in outputs.items()
            if output.spec is not None
        }
        work = LayerPass(layer, streams, self._chunks, matrices, routers, taps, self._settings, told)
        solved = work.run()
        # What this layer returned must be on the disk before the file that says that it is done.
        for path in self._results.folder.glob(f"*/*-layer-{layer:03d}.safetensors"):
            sync(path)
        self._results.put(layer, {f"{prefix}.{path}": one for path, one in solved.items()})
        mx.clear_cache()

    def _told(self, layer: int, total: int) -> Callable[[float], None]:
        work = self._plan.work_bytes

        def tell(share: float) -> None:
            self._progress("calibrating", round(work * (layer + share) / total), work, f"layer {layer + 1} of {total}")

        return tell


def _prefixes(model: LazyModel) -> list[str]:
    """The path of each layer in its model, of which nothing stays in memory."""
    root = model.make(None)
    paths = {id(module): path for path, module in root.named_modules()}
    return [paths[id(layer)] for layer in root.layers]


def _name(plan: Plan, chunks: Sequence[TextChunk], model: LazyModel) -> str:
    """Of one calibration on one machine, versions and all: nothing is resumed where other bytes might come."""
    tools = [version(package) for package in ("configi-mlx", "mlx", "mlx-lm", "numpy")]
    given = [[chunk.kind, list(chunk.tokens), chunk.held_back] for chunk in chunks]
    facts = [plan.fingerprint, model.identity, tools, str(mx.default_device()), given]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
