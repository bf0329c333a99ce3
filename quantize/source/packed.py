"""Which tensors of a checkpoint are packed, and how: read from names, dtypes and shapes, and what config.json declares.

The result has each matrix once, under the name that it would have unpacked, with its `packing`; scales, zeros and the
like are no tensors of their own any more. What does not fit together is one sentence. How a packing is multiplied out
is in `unpack.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantize.errors import SourceError
from quantize.folder.finite import is_float
from quantize.source.checkpoint import Packing, SourceTensor
from quantize.source.declared import check_method, computed_dtype, declarations
from quantize.source.integer_widths import column_layout, compressed_width, packed_sizes
from quantize.source.unpack import GroupedIntegers, MlxPacked, Mxfp4Blocks, Scaled

_FP8 = ("F8_E4M3", "F8_E5M2")
_FLOATS = ("BF16", "F16", "F32")
# How names of an fp8 or int8 tensor's scale end; bitsandbytes' of int8 are for 127 steps.
_SCALES = ("_scale_inv", "_scale", "_weight_scale")
_INT8_SCALE, _INT8_STEPS = "SCB", 127
# The blocks of the fp8 models that do not say.
_BLOCK = 128


def unpacked(stored: Mapping[str, SourceTensor], config: Mapping[str, Any]) -> dict[str, SourceTensor]:
    """`stored` with the packed ones as the matrices that they stand for. Raises SourceError."""
    tables = declarations(config)
    # What is left of a packing that has been undone: merged fine-tunes keep its table.
    plain = all(is_float(tensor.dtype) for tensor in stored.values())
    for table in tables:
        check_method(table, plain=plain)
    reader = _Reader(stored, tables, computed_dtype(config))
    found: dict[str, SourceTensor] = {}
    for tensor in stored.values():
        matrix = reader.matrix(tensor)
        found[matrix.name] = matrix
    found = {name: tensor for name, tensor in found.items() if name not in reader.used}
    if bare := next((tensor for tensor in found.values() if tensor.dtype in _FP8), None):
        raise SourceError(f"The fp8 tensor {bare.name} has no scale; {bare.name}{_SCALES[0]} would be one.")
    return found


@dataclass(frozen=True, slots=True)
class _Width:
    """How MLX packs a module; numbers of others, so of any type."""

    group_size: Any
    bits: Any
    mode: str

    def fits(self, codes: SourceTensor, scales: SourceTensor) -> bool:
        numbers = (self.group_size, self.bits)
        whole = all(type(number) is int and number > 0 for number in numbers)
        return whole and 32 * codes.matrix[1] == self.bits * self.group_size * scales.matrix[1]


# The only widths of the modes without biases.
_MODES = (_Width(16, 4, "nvfp4"), _Width(32, 4, "mxfp4"), _Width(32, 8, "mxfp8"))


@dataclass
class _Reader:
    """`used` collects the parts of what was recognized."""

    stored: Mapping[str, SourceTensor]
    tables: Sequence[Mapping[str, Any]]
    dtype: str

    def __post_init__(self) -> None:
        self.used: set[str] = set()

    def matrix(self, tensor: SourceTensor) -> SourceTensor:
        """`tensor` itself, or what it is the codes of."""
        path, _, leaf = tensor.name.rpartition(".")
        known: Callable[[SourceTensor, str], SourceTensor] | None = {
            "qweight": self._columns,
            "weight_packed": self._compressed,
        }.get(leaf)
        if known is not None:
            return known(tensor, path)
        if tensor.name.endswith("_blocks") and tensor.dtype == "U8":
            return self._gpt_oss(tensor)
        if tensor.dtype in _FP8 or (tensor.dtype == "I8" and self._scale_of(tensor) is not None):
            return self._scaled(tensor)
        if tensor.dtype == "F64":
            return self._made(tensor, tensor.name, tensor.shape, "F32", Scaled(tensor, None, (), "F32"))
        if leaf == "weight" and tensor.dtype == "U32" and f"{path}.scales" in self.stored:
            return self._mlx(tensor, path)
        if leaf == "weight" and tensor.dtype == "U8" and f"{path}.weight_scale_2" in self.stored:
            return self._nvfp4(tensor, path, f"{path}.weight_scale_2", divides=False)
        if leaf == "weight" and tensor.dtype == "U8" and f"{tensor.name}.absmax" in self.stored:
            raise SourceError(
                f"{tensor.name} is packed in 4 bits by bitsandbytes, which only its own library can undo; "
                "build from the unquantized checkpoint."
            )
        return tensor

    # ---- one code an element

    def _scale_of(self, tensor: SourceTensor) -> SourceTensor | None:
        path = tensor.name.removesuffix(".weight")
        names = [tensor.name + end for end in _SCALES]
        names += [f"{path}.{_INT8_SCALE}"] if tensor.dtype == "I8" else [f"{path}.scale"] if path != tensor.name else []
        return next((self.stored[name] for name in names if name in self.stored), None)

    def _scaled(self, codes: SourceTensor) -> SourceTensor:
        scale = self._scale_of(codes)
        if scale is None:
            # Perhaps the scales of another. Where nothing is declared: rounded to fp8, and that is all.
            plain = self._made(codes, codes.name, codes.shape, self.dtype, Scaled(codes, None, (), self.dtype))
            return codes if self.tables else plain
        if scale.dtype not in (*_FLOATS, "F8_E8M0", "U8"):
            raise SourceError(f"{scale.name} is {scale.dtype}, which no scale is.")
        runs = self._runs(codes, scale)
        grid = tuple(-(-size // run) for size, run in zip(codes.shape, runs, strict=True))
        gain = 1 / _INT8_STEPS if scale.name.endswith(_INT8_SCALE) else 1
        if zero := self.stored.get(f"{codes.name}_zero_point"):
            if math.prod(zero.shape) != math.prod(scale.shape):
                raise _misfit(zero, codes)
            if zero.dtype not in ("I8", *_FLOATS, *_FP8):
                raise SourceError(f"{zero.name} is {zero.dtype}, which no zero of {codes.name} is.")
        zeros = replace(zero, shape=grid) if zero else None
        packing = Scaled(codes, replace(scale, shape=grid), runs, self.dtype, gain, zeros)
        return self._made(codes, codes.name, codes.shape, self.dtype, packing, scale, zero)

    def _runs(self, codes: SourceTensor, scale: SourceTensor) -> tuple[int, ...]:
        """How many elements of each axis share a scale.

        One, all, or a block: of the size that config.json declares, else of 128, else such that they are all equal. A
        scale with fewer axes is of the first ones: of each row, or of each expert.
        """
        shape = scale.shape if math.prod(scale.shape) > 1 else ()
        shape = (*shape, *[1] * (len(codes.shape) - len(shape)))
        if len(shape) != len(codes.shape) or not shape:
            raise _misfit(scale, codes)
        declared = next((size for table in self.tables if (size := table.get("weight_block_size"))), None)
        blocks = [declared] if declared else [[_BLOCK, _BLOCK], [0, 0]]
        if not all(isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair) for pair in blocks):
            raise SourceError("config.json's weight_block_size is not two numbers.")
        for pair in blocks:
            sizes = [0] * (len(codes.shape) - 2) + pair[-len(codes.shape) :]
            runs = [_run(*axis) for axis in zip(codes.shape, shape, sizes, strict=True)]
            if all(runs):
                return tuple(runs)
        raise _misfit(scale, codes)

    # ---- MLX's layouts

    def _gpt_oss(self, codes: SourceTensor) -> SourceTensor:
        """(..., groups, 16) bytes of two codes each, (..., groups) scales."""
        scales = self.stored.get(codes.name.removesuffix("_blocks") + "_scales")
        if scales is None:
            return codes
        if codes.shape != (*scales.shape, 16) or scales.dtype != "U8":
            raise _misfit(scales, codes)
        *rows, groups, _ = codes.shape
        flat = replace(codes, shape=(*rows, 16 * groups))
        packing = Mxfp4Blocks(flat, scales, None, 32, 4, "mxfp4", "BF16")
        return self._made(codes, codes.name, (*rows, 32 * groups), "BF16", packing, scales)

    def _mlx(self, codes: SourceTensor, path: str) -> SourceTensor:
        scales, biases = self.stored[f"{path}.scales"], self.stored.get(f"{path}.biases")
        width = self._mlx_settings(codes, scales, biases, path)
        columns = 32 * codes.matrix[1] // width.bits
        shape = (*codes.shape[:-1], columns)
        grid = (*codes.shape[:-1], columns // width.group_size)
        for part in (scales, biases):
            if part is not None and part.shape != grid:
                raise _misfit(part, codes)
        if f"{path}.global_scale" in self.stored:
            raise SourceError(f"{codes.name} is packed with a global_scale, which cannot be undone here.")
        dtype = scales.dtype if biases is not None else self.dtype
        packing = MlxPacked(codes, scales, biases, width.group_size, width.bits, width.mode, dtype)
        return self._made(codes, codes.name, shape, dtype, packing, scales, biases)

    def _mlx_settings(
        self, codes: SourceTensor, scales: SourceTensor, biases: SourceTensor | None, path: str
    ) -> _Width:
        """As mlx-lm has it: a module without an entry is what its shapes say, in groups of the default size."""
        table = next((table for table in self.tables if "bits" in table and "group_size" in table), {})
        entry = table.get(path)
        if isinstance(entry, dict):
            wish = _Width(entry.get("group_size"), entry.get("bits"), str(entry.get("mode", "affine")))
        elif biases is None:
            wish = next((width for width in _MODES if width.fits(codes, scales)), _Width(0, 0, ""))
        else:
            size = table.get("group_size")
            weights = size * scales.matrix[1] if type(size) is int and size > 0 else 0
            wish = _Width(size, 32 * codes.matrix[1] // weights if weights else 0, "affine")
        if not wish.fits(codes, scales):
            raise _misfit(scales, codes)
        return wish

    def _nvfp4(self, codes: SourceTensor, path: str, gain: str, *, divides: bool) -> SourceTensor:
        """fp4 in groups of 16 with fp8 scales, and one number for all."""
        scales, overall = self.stored.get(f"{path}.weight_scale"), self.stored.get(gain)
        columns = 2 * codes.matrix[1]
        if scales is None or overall is None or scales.shape != (*codes.shape[:-1], columns // 16):
            raise SourceError(f"{codes.name} lacks the scales of nvfp4, or they do not fit it.")
        packing = MlxPacked(codes, scales, None, 16, 4, "nvfp4", self.dtype, overall, divides)
        shape = (*codes.shape[:-1], columns)
        return self._made(codes, f"{path}.weight", shape, self.dtype, packing, scales, overall)

    # ---- integers in words

    def _compressed(self, codes: SourceTensor, path: str) -> SourceTensor:
        """compressed-tensors, which packs integers along a row."""
        scales, zeros, groups = (self.stored.get(f"{path}.weight_{leaf}") for leaf in ("scale", "zero_point", "g_idx"))
        if scales is None:
            raise SourceError(f"{codes.name} has no {path}.weight_scale.")
        if codes.dtype == "U8" and scales.dtype == "F8_E4M3":
            return self._nvfp4(codes, path, f"{path}.weight_global_scale", divides=True)
        if codes.dtype == "U8":
            packing = MlxPacked(codes, scales, None, 32, 4, "mxfp4", self.dtype)
            shape = (*codes.shape[:-1], 2 * codes.matrix[1])
            if scales.dtype not in ("U8", "F8_E8M0") or scales.shape != (*shape[:-1], shape[-1] // 32):
                raise _misfit(scales, codes)
            return self._made(codes, f"{path}.weight", shape, self.dtype, packing, scales)
        bits, inputs = compressed_width(self.tables, codes, scales, path)
        dtype = scales.dtype if scales.dtype in ("BF16", "F16") else self.dtype
        packed = GroupedIntegers("rows", codes, scales, zeros, groups, bits, inputs, dtype)
        rows, count = codes.matrix[0], scales.matrix[1]
        if scales.matrix[0] != rows:
            raise _misfit(scales, codes)
        if zeros:
            heights = (rows,) if zeros.dtype == "I8" else packed_sizes(rows, bits)
            if zeros.matrix[1] != count or zeros.matrix[0] not in heights:
                raise _misfit(zeros, codes)
        self.used.add(f"{path}.weight_shape")
        return self._made(codes, f"{path}.weight", (*codes.shape[:-1], inputs), dtype, packed, scales, zeros, groups)

    def _columns(self, codes: SourceTensor, path: str) -> SourceTensor:
        """AWQ and GPTQ, which store matrices the other way round."""
        scales, zeros, groups = (self.stored.get(f"{path}.{leaf}") for leaf in ("scales", "qzeros", "g_idx"))
        if scales is None or len(codes.shape) != 2 or len(scales.shape) != 2:
            raise SourceError(f"{codes.name} has no {path}.scales, or one of them is no matrix.")
        layout = column_layout(self.tables, codes, scales, zeros)
        bits = layout.bits
        (height, width), (count, outputs) = codes.shape, scales.shape
        inputs, stored = (height, width * 8) if layout.name == "awq" else (height * 32 // bits, width)
        wanted = layout.group_count(inputs, count)
        if stored != outputs or (count != wanted and groups is None):
            raise _misfit(scales, codes)
        if zeros is not None and zeros.shape != (count, outputs * bits // 32):
            raise _misfit(zeros, codes)
        if groups is not None and groups.shape != (inputs,):
            raise _misfit(groups, codes)
        dtype = scales.dtype if scales.dtype in ("BF16", "F16") else self.dtype
        packing = GroupedIntegers(layout.name, codes, scales, zeros, groups, bits, inputs, dtype, layout.zero_plus)
        return self._made(codes, f"{path}.weight", (outputs, inputs), dtype, packing, scales, zeros, groups)

    def _made(
        self,
        codes: SourceTensor,
        name: str,
        shape: Iterable[int],
        dtype: str,
        packing: Packing,
        *parts: SourceTensor | None,
    ) -> SourceTensor:
        self.used |= {part.name for part in parts if part is not None}
        return SourceTensor(name, dtype, tuple(shape), codes.shard, codes.nbytes, packing)


def _run(size: int, scales: int, block: int) -> int:
    """Elements of an axis that share a scale; 0 if these scales are not of this axis. `block` 0: equal parts."""
    if scales in (1, size):
        return max(1, size // scales)
    if block > 0:
        return block if -(-size // block) == scales else 0
    return size // scales if scales and size % scales == 0 else 0


def _misfit(part: SourceTensor, codes: SourceTensor) -> SourceError:
    return SourceError(f"{part.name} of the shape {list(part.shape)} does not fit {codes.name} of {list(codes.shape)}.")
