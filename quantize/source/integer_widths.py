"""How integers of a few bits are packed into words of 32: what config.json declares, held against their shapes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quantize.errors import SourceError
from quantize.source.checkpoint import SourceTensor

_Tables = Sequence[Mapping[str, Any]]
_BITS = (2, 3, 4, 8)
# Where the settings of single modules stand: GPTQModel's, and AutoRound's.
_OVERRIDES = ("dynamic", "extra_config")
# Layouts of kernels that store something else than what they are named after.
_OTHER_LAYOUTS = ("gemv", "gemv_fast", "gemv-fast", "llm-awq", "llm_awq", "marlin", "bitblas")
# Where it stands for the layout of a module, and the one whose zeros are stored as they are.
_FORMS = ("checkpoint_format", "format", "version")
_PLAIN_ZEROS = "gptq_v2"

_MOST_REPEATED = 3
_CLASS = "Linear"


@dataclass(frozen=True, slots=True)
class ColumnLayout:
    """AWQ's or GPTQ's, which store matrices the other way round. `group_size` None: as the scales have it.

    `zero_plus`: 1 for GPTQ's first format, which stores zeros less one.
    """

    name: Literal["awq", "gptq"]
    bits: int
    group_size: int | None
    zero_plus: int

    def group_count(self, inputs: int, count: int) -> int:
        """How many groups so many inputs must have; `count` is how many there are."""
        if self.group_size is None:
            return count if inputs % count == 0 else 0
        return -(-inputs // self.group_size) if self.group_size > 0 else 1


def column_layout(
    tables: _Tables, codes: SourceTensor, scales: SourceTensor, zeros: SourceTensor | None
) -> ColumnLayout:
    """`codes` and `scales` are matrices. Raises SourceError for what cannot be undone."""
    table = next((table for table in tables if "bits" in table or "w_bit" in table), {})
    method = str(table.get("packing_format", table.get("quant_method", "")))
    form = next((str(table[key]).lower() for key in _FORMS if table.get(key)), "")
    if form in _OTHER_LAYOUTS or "marlin" in method:
        raise SourceError(f"{codes.name} is packed by {method} for {form or method}, which cannot be undone here.")
    outputs = scales.shape[1]
    # Where nothing says it: AWQ packs outputs, and GPTQ inputs.
    is_awq = "awq" in method if method else codes.shape[1] * 8 == outputs
    bits, size = table.get("bits", table.get("w_bit", 4)), table.get("group_size", table.get("q_group_size"))
    if not table or any(table.get(key) for key in _OVERRIDES):
        # Only the shapes tell of this one.
        size = None
        stored = 32 * zeros.shape[-1] // outputs if zeros is not None and outputs else bits
        bits = stored if stored in _BITS else bits
    elif type(size) is not int:
        size = -1
    if (is_awq and bits != 4) or bits not in _BITS:
        name = method or ("awq" if is_awq else "gptq")
        raise SourceError(f"{codes.name} is packed by {name} in {bits} bits, which cannot be undone here.")
    if is_awq:
        return ColumnLayout("awq", bits, size, 0)
    return ColumnLayout("gptq", bits, size, 0 if _PLAIN_ZEROS in (form, method.rpartition(":")[2]) else 1)


def packed_sizes(count: int, bits: int) -> tuple[int, int]:
    """How many words hold `count` codes: as a stream of bits, and where no code crosses a word.

    compressed-tensors packs in the first way from 0.18 on and in the second before; they differ for widths that do
    not divide a word.
    """
    return -(-count * bits // 32), -(-count // (32 // bits))


def compressed_width(tables: _Tables, codes: SourceTensor, scales: SourceTensor, path: str) -> tuple[int, int]:
    """Bits and columns of a matrix of compressed-tensors: the declared group that fits the shapes.

    Of several, the one whose targets name the module, before one for a whole class of modules. Raises SourceError when
    none is left, or more than one.
    """
    fitting: dict[tuple[int, int], int] = {}
    for group in _config_groups(tables):
        if (width := _fit(group["weights"], codes, scales)) is not None:
            fitting[width] = max(fitting.get(width, 0), _named(group, path))
    best = [width for width, named in fitting.items() if named == max(fitting.values())]
    if len(best) != 1:
        raise SourceError(f"What config.json declares does not say how {codes.name} is packed.")
    return best[0]


def _config_groups(tables: _Tables) -> list[Mapping[str, Any]]:
    return [
        group
        for table in tables
        if isinstance(table.get("config_groups"), dict)
        for group in table["config_groups"].values()
        if isinstance(group, dict) and isinstance(group.get("weights"), dict)
    ]


def _fit(weights: Mapping[str, Any], codes: SourceTensor, scales: SourceTensor) -> tuple[int, int] | None:
    """Bits and columns, if a declared group can be what is stored."""
    bits, size, count = weights.get("num_bits"), weights.get("group_size"), scales.matrix[1]
    if type(bits) is not int or not 1 < bits <= 8:
        return None
    words = codes.matrix[1]
    if count == 1:
        # Of other widths the last word may not be full, and there are two ways to fill them.
        return (bits, words * 32 // bits) if 32 % bits == 0 else None
    if type(size) is int and size > 0 and words in packed_sizes(count * size, bits):
        return bits, count * size
    return None


def _is_quick(pattern: str) -> bool:
    """Whether a pattern of others takes little time on any path: nothing repeated that repeats, and little at all."""
    return re.search(r"\)[*+{?]", pattern) is None and len(re.findall(r"[*+{]", pattern)) <= _MOST_REPEATED


def _named(group: Mapping[str, Any], path: str) -> int:
    """2 where a target of the group is the module itself (its path, the end of it, or a pattern), 1 where its class."""
    targets = group.get("targets")
    given = [target for target in targets if isinstance(target, str)] if isinstance(targets, list) else []
    if any(_matches(target, path) for target in given):
        return 2
    return int(_CLASS in given)


def _matches(target: str, path: str) -> bool:
    if not target.startswith("re:"):
        return path == target or path.endswith(f".{target}")
    with contextlib.suppress(re.error):
        return _is_quick(target[3:]) and re.match(target[3:], path) is not None
    return False
