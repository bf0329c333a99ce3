"""The quantization table in config.json, in the one form that every reader of MLX models accepts.

mlx-lm before 0.32.2, mlx-swift-lm and mlx-vlm know a module's bits only from its entry, so every module that can be
quantized has one. mlx-swift-lm refuses a table with any key that is neither a setting nor a module, any number that is
not an integer, and reads `quantization` alone; mlx-lm writes a copy under the Hub's name, `quantization_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantize.folder.quant_spec import BITS, GROUP_SIZES, QuantSpec

TABLE, COPY = "quantization", "quantization_config"
SETTINGS = ("group_size", "bits", "mode")
# Written by other tools; mlx-swift-lm ignores these three and no others.
_IGNORED = ("quant_method", "linear_class", "quantization_mode")


def is_affine(config: Mapping[str, Any]) -> bool:
    """Whether everything quantized uses affine mode, the only one built here."""
    table = config.get(TABLE)
    entries = [table, *table.values()] if isinstance(table, dict) else []
    return all(entry.get("mode", "affine") == "affine" for entry in entries if isinstance(entry, dict))


def read_specs(config: Mapping[str, Any]) -> tuple[dict[str, QuantSpec | None], QuantSpec | None, list[str]]:
    """Each module's spec, or None for `false`; the default, None for an unquantized model; the problems found.

    Only for affine quantization: see `is_affine`.
    """
    table = config.get(TABLE)
    if table is None:
        return {}, None, [f"config.json has {COPY} and no {TABLE}."] if config.get(COPY) else []
    if not isinstance(table, dict):
        return {}, None, [f"config.json: {TABLE} is not a table."]
    problems = [] if config.get(COPY, table) == table else [f"config.json: {COPY} differs from {TABLE}."]
    specs: dict[str, QuantSpec | None] = {}
    for path, entry in table.items():
        if path in SETTINGS or path in _IGNORED or entry is True:
            continue
        specs[path] = None if entry is False else _read_entry(entry)
        if entry is not False and specs[path] is None:
            problems.append(f"config.json: {TABLE}.{path} is neither a setting nor a module; mlx-swift-lm refuses it.")
    default = _read_entry({key: table[key] for key in SETTINGS if key in table})
    if default is None:
        problems.append(f"config.json: {TABLE} lacks an integer group_size or bits.")
    return specs, default, problems


def _read_entry(entry: Any) -> QuantSpec | None:
    if not isinstance(entry, dict) or entry.get("mode", "affine") != "affine" or not entry.keys() <= set(SETTINGS):
        return None
    bits, group_size = entry.get("bits"), entry.get("group_size")
    # Neither True nor 4.0 counts as an integer here.
    if type(bits) is not int or type(group_size) is not int or bits not in BITS or group_size not in GROUP_SIZES:
        return None
    return QuantSpec(bits, group_size)
