"""The config.json of a quantized model, in the one form that every reader of MLX models takes, and the check of it.

mlx-lm before 0.32.2, mlx-swift-lm and mlx-vlm know a module's width only from its entry, so every module that can be
quantized has one. mlx-swift-lm refuses a table with any key that is neither a setting nor a module, any number that is
not whole, and reads `quantization` alone; mlx-lm writes a copy under the Hub's name, `quantization_config`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantize.plan import Plan
from quantize.policy import BITS, GROUP_SIZES, Width
from quantize.safetensors_format import INDEX

TABLE, COPY = "quantization", "quantization_config"
SETTINGS = ("group_size", "bits", "mode")
# Of other makers; mlx-swift-lm passes over these three and no other.
_PASSED_OVER = ("quant_method", "linear_class", "quantization_mode")
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
    weights = Counter[Width]()
    for target in plan.targets:
        if target.width is not None:
            weights[target.width] += target.parameters
    modules: dict[str, Any] = {path: _entry(width) for path, width in widths.items()}
    modules |= dict.fromkeys(plan.kept_modules, False)
    return _entry(weights.most_common(1)[0][0]) | dict(sorted(modules.items(), key=lambda item: _natural(item[0])))


def _entry(width: Width) -> dict[str, Any]:
    return {"group_size": width.group_size, "bits": width.bits, "mode": "affine"}


def _natural(path: str) -> list[str]:
    """Layer 2 before layer 10."""
    return [part.zfill(6) if part.isdecimal() else part for part in path.split(".")]


def is_affine(config: Mapping[str, Any]) -> bool:
    """Whether all that is quantized is so in the one mode that is built here."""
    table = config.get(TABLE)
    entries = [table, *table.values()] if isinstance(table, dict) else []
    return all(entry.get("mode", "affine") == "affine" for entry in entries if isinstance(entry, dict))


def read_widths(config: Mapping[str, Any]) -> tuple[dict[str, Width | None], Width | None, list[str]]:
    """Module -> width or None for `false`; the width of all others, None for an unquantized model; what is wrong.

    Only for affine quantization: see `is_affine`.
    """
    table = config.get(TABLE)
    if table is None:
        return {}, None, [f"config.json has {COPY} and no {TABLE}."] if config.get(COPY) else []
    if not isinstance(table, dict):
        return {}, None, [f"config.json: {TABLE} is no table."]
    wrong = [] if config.get(COPY, table) == table else [f"config.json: {COPY} is no copy of {TABLE}."]
    widths: dict[str, Width | None] = {}
    for path, entry in table.items():
        if path in SETTINGS or path in _PASSED_OVER or entry is True:
            continue
        widths[path] = None if entry is False else _read_entry(entry)
        if entry is not False and widths[path] is None:
            wrong.append(f"config.json: {TABLE}.{path} is neither a setting nor a width; mlx-swift-lm refuses it.")
    default = _read_entry({key: table[key] for key in SETTINGS if key in table})
    if default is None:
        wrong.append(f"config.json: {TABLE} lacks a whole group_size or bits.")
    return widths, default, wrong


def _read_entry(entry: Any) -> Width | None:
    if not isinstance(entry, dict) or entry.get("mode", "affine") != "affine" or not entry.keys() <= set(SETTINGS):
        return None
    bits, group_size = entry.get("bits"), entry.get("group_size")
    # True is no number here, and 4.0 no whole one.
    if type(bits) is not int or type(group_size) is not int or bits not in BITS or group_size not in GROUP_SIZES:
        return None
    return Width(bits, group_size)
