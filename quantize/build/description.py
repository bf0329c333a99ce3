"""The small files of a built model, from its plan: config.json, the index of the shards, configi.json."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantize.calibrate.calibration import CalibratedWeights
from quantize.folder.config import COPY, TABLE
from quantize.folder.manifest import FORMAT, File, Manifest, PolicyName, Source, Tensor, TextSummary
from quantize.folder.manifest import TensorCalibration as Figures
from quantize.folder.quant_spec import QuantSpec
from quantize.folder.safetensors_format import INDEX
from quantize.plan.output_tensor import OutputTensor
from quantize.plan.plan import Plan

# Needed only by the dropped towers; LM Studio takes a model with a vision_config for a vision model.
_TOWERS = re.compile(r"(?:vision|audio|image|video|mm|boi|eoi|boa|eoa)_.*")


def output_config(plan: Plan) -> dict[str, Any]:
    """The source's config.json without what dropped tensors needed, with the quantization table."""
    dropped = _TOWERS if plan.dropped else re.compile("(?!)")
    config = {key: value for key, value in plan.config.items() if key != COPY and not dropped.fullmatch(key)}
    table = _table(plan)
    return config | ({TABLE: table, COPY: table} if table else {})


def write_configs(plan: Plan, folder: Path) -> None:
    """config.json and the index of the shards."""
    _write(folder / "config.json", output_config(plan))
    weight_map = {name: file.name for file in plan.files for name in file.header.entries}
    metadata = {"total_size": plan.tensor_bytes, "total_parameters": plan.parameters}
    _write(folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})


def _write(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _table(plan: Plan) -> dict[str, Any]:
    specs = {output.path: output.spec for output in plan.tensors if output.spec is not None}
    if not specs:
        return {}
    weights = Counter[QuantSpec]()
    for output in plan.tensors:
        if output.spec is not None:
            weights[output.spec] += output.parameters
    modules: dict[str, Any] = {path: _entry(spec) for path, spec in specs.items()}
    modules |= dict.fromkeys(plan.kept_modules, False)
    return _entry(weights.most_common(1)[0][0]) | dict(sorted(modules.items(), key=lambda item: _natural(item[0])))


def _entry(spec: QuantSpec) -> dict[str, Any]:
    return {"group_size": spec.group_size, "bits": spec.bits, "mode": "affine"}


def _natural(path: str) -> list[str]:
    """Layer 2 before layer 10."""
    return [part.zfill(6) if part.isdecimal() else part for part in path.split(".")]


def manifest_of(plan: Plan, files: Mapping[str, File], calibrated: CalibratedWeights | None = None) -> Manifest:
    figures = calibrated.figures if calibrated else {}
    return Manifest(
        FORMAT,
        plan.fingerprint,
        Source(plan.label, plan.repository, plan.revision, plan.source_identity),
        PolicyName(plan.policy.name, plan.policy.description),
        plan.parameters,
        round(plan.bits_per_weight, 4),
        {output.name: _tensor(output, figures.get(output.path)) for output in plan.tensors},
        dict(files),
        tools(),
        _calibration(plan, calibrated) if calibrated else None,
    )


@cache
def tools() -> dict[str, str]:
    """The versions that determine a model's bytes besides source and policy."""
    return {package: version(package) for package in ("configi-mlx", "mlx", "mlx-lm")}


def _calibration(plan: Plan, calibrated: CalibratedWeights) -> TextSummary:
    identity = dict(plan.calibration or {})
    return TextSummary(str(identity.get("text")), dict(calibrated.kinds), dict(calibrated.held_back), identity)


def _tensor(output: OutputTensor, figures: Figures | None) -> Tensor:
    if output.spec is None:
        return Tensor(output.role, dtype=output.dtype)
    return Tensor(output.role, output.spec.bits, output.spec.group_size, calibrated=figures)
