"""The widths in the config.json of a quantized model, in the one form that every reader of MLX models takes.

mlx-lm before 0.32.2, mlx-swift-lm and mlx-vlm know a module's width only from its entry, so every module that can be
quantized has one. mlx-swift-lm refuses a table with any key that is neither a setting nor a module, any number that is
not whole, and reads `quantization` alone; mlx-lm writes a copy under the Hub's name, `quantization_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantize.folder.quant_spec import BITS, GROUP_SIZES, QuantSpec

TABLE, COPY = "quantization", "quantization_config"
SETTINGS = ("group_size", "bits", "mode")
# Of other makers; mlx-swift-lm passes over these three and no other.
_PASSED_OVER = ("quant_method", "linear_class", "quantization_mode")


def is_affine(config: Mapping[str, Any]) -> bool:
    """Whether all that is quantized is so in the one mode that is built here."""
    table = config.get(TABLE)
    entries = [table, *table.values()] if isinstance(table, dict) else []
    return all(entry.get("mode", "affine") == "affine" for entry in entries if isinstance(entry, dict))


def read_widths(config: Mapping[str, Any]) -> tuple[dict[str, QuantSpec | None], QuantSpec | None, list[str]]:
    """Module -> width or None for `false`; the width of all others, None for an unquantized model; what is wrong.

    Only for affine quantization: see `is_affine`.
    """
    table = config.get(TABLE)
    if table is None:
        return {}, None, [f"config.json has {COPY} and no {TABLE}."] if config.get(COPY) else []
    if not isinstance(table, dict):
        return {}, None, [f"config.json: {TABLE} is no table."]
    wrong = [] if config.get(COPY, table) == table else [f"config.json: {COPY} is no copy of {TABLE}."]
    widths: dict[str, QuantSpec | None] = {}
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


def _read_entry(entry: Any) -> QuantSpec | None:
    if not isinstance(entry, dict) or entry.get("mode", "affine") != "affine" or not entry.keys() <= set(SETTINGS):
        return None
    bits, group_size = entry.get("bits"), entry.get("group_size")
    # True is no number here, and 4.0 no whole one.
    if type(bits) is not int or type(group_size) is not int or bits not in BITS or group_size not in GROUP_SIZES:
        return None
    return QuantSpec(bits, group_size)
