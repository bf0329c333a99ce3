"""What a config.json declares of packed tensors, wherever it does, and what it says of the model without that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantize.errors import SourceError
from quantize.folder.config import COPY, TABLE

# Of config.json and, multimodal checkpoints having the language model's numbers one level down, of these in it.
_NESTED = ("text_config", "language_config", "llm_config", "thinker_config")
# What is undone here; auto-round names the layout in `packing_format`.
_METHODS = (
    "mlx", "fp8", "mxfp8", "fbgemm_fp8", "mxfp4", "compressed-tensors", "modelopt", "awq", "gptq", "auto-round",
    "intel/auto-round", "bitsandbytes",
)  # fmt: skip
# Not a form of the stored weights alone: the model rounds them while it computes.
_COMPUTED = ("bitnet", "fp_quant")


def declarations(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The quantization tables of a config.json, wherever they stand."""
    levels = [config, *(level for name in _NESTED if isinstance(level := config.get(name), dict))]
    found = [level.get(key) for level in levels for key in (TABLE, COPY, "compression_config")]
    return [table for table in found if isinstance(table, dict) and table]


def undeclared(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without them: what it says of the model when that is unpacked."""
    kept = {key: value for key, value in config.items() if key not in (TABLE, COPY, "compression_config")}
    return {
        key: undeclared(value) if key in _NESTED and isinstance(value, dict) else value for key, value in kept.items()
    }


def check_method(table: Mapping[str, Any], *, plain: bool = False) -> None:
    """Raises SourceError when what `table` declares cannot be undone here.

    `plain`: all tensors are floating numbers, so that there is nothing to undo.
    """
    method = str(table.get("quant_method", table.get("quant_type", "mlx")))
    sparsity = table.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        method = f"{method} and sparsity ({sparsity['format']})"
    if method not in _METHODS and not (plain and method not in _COMPUTED):
        raise SourceError(
            f"The source is quantized with {method}, which cannot be undone here; "
            "build from the unquantized checkpoint."
        )


def computed_dtype(config: Mapping[str, Any]) -> str:
    """What the model computes in, where no scale says it."""
    levels = [config, *(level for name in _NESTED if isinstance(level := config.get(name), dict))]
    named = next((value for level in levels for key in ("dtype", "torch_dtype") if (value := level.get(key))), None)
    return "F16" if named == "float16" else "BF16"
