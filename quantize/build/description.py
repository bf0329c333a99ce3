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

from quantize.folder.config import COPY, TABLE
from quantize.folder.manifest import FORMAT, File, Manifest, PolicyName, Source, Tensor
from quantize.folder.quant_spec import QuantSpec
from quantize.folder.safetensors_format import INDEX
from quantize.plan.output_tensor import OutputTensor
from quantize.plan.plan import Plan

# What only the dropped towers need; LM Studio takes a model with a vision_config for one that sees.
_TOWERS = re.compile(r"(?:vision|audio|image|video|mm|boi|eoi|boa|eoa)_.*")


def output_config(plan: Plan) -> dict[str, Any]:
    """The source's config.json without what the model lost, with the widths."""
    gone = _TOWERS if plan.dropped else re.compile("(?!)")
    config = {key: value for key, value in plan.config.items() if key != COPY and not gone.fullmatch(key)}
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
    widths = {target.path: target.width for target in plan.targets if target.width is not None}
    if not widths:
        return {}
    weights = Counter[QuantSpec]()
    for target in plan.targets:
        if target.width is not None:
            weights[target.width] += target.parameters
    modules: dict[str, Any] = {path: _entry(width) for path, width in widths.items()}
    modules |= dict.fromkeys(plan.kept_modules, False)
    return _entry(weights.most_common(1)[0][0]) | dict(sorted(modules.items(), key=lambda item: _natural(item[0])))


def _entry(width: QuantSpec) -> dict[str, Any]:
    return {"group_size": width.group_size, "bits": width.bits, "mode": "affine"}


def _natural(path: str) -> list[str]:
    """Layer 2 before layer 10."""
    return [part.zfill(6) if part.isdecimal() else part for part in path.split(".")]


def manifest_of(plan: Plan, files: Mapping[str, File]) -> Manifest:
    return Manifest(
        FORMAT,
        plan.fingerprint,
        Source(plan.label, plan.repository, plan.revision, plan.source_identity),
        PolicyName(plan.policy.name, plan.policy.description),
        plan.parameters,
        round(plan.bits_per_weight, 4),
        {target.name: _tensor(target) for target in plan.targets},
        dict(files),
        tools(),
    )


@cache
def tools() -> dict[str, str]:
    """What decides on the bytes of a model besides source and policy."""
    return {package: version(package) for package in ("configi-mlx", "mlx", "mlx-lm")}


def _tensor(target: OutputTensor) -> Tensor:
    if target.width is None:
        return Tensor(target.role, dtype=target.dtype)
    return Tensor(target.role, target.width.bits, target.width.group_size)
