"""Checkpoints packed as other tools pack them, and the matrices that they stand for, computed in float64.

A packer is: (the matrix's name, its shape, a generator) -> the tensors stored for it, and the exact matrix.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from quantize.folder.safetensors_format import ITEM_SIZES, lay_out
from tests.support.checkpoints import Shapes, write_tokenizer

# (dtype, array whose bytes are stored)
Stored = tuple[str, np.ndarray[Any, Any]]
Matrix = np.ndarray[Any, Any]
Packer = Callable[[str, tuple[int, ...], np.random.Generator], tuple[dict[str, Stored], Matrix]]


def as_bf16(values: Matrix) -> Stored:
    return "BF16", (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bf16(stored: Matrix) -> Matrix:
    return (stored.astype(np.uint32) << 16).view(np.float32)


def write_stored(folder: Path, config: Mapping[str, Any], shards: Sequence[Mapping[str, Stored]]) -> Path:
    """A checkpoint of these very tensors, one file a mapping, with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        start, _ = lay_out([(tensor, dtype, array.shape) for tensor, (dtype, array) in tensors.items()])
        content = b"".join(np.ascontiguousarray(array).tobytes() for _, array in tensors.values())
        assert len(content) == sum(ITEM_SIZES[dtype] * array.size for dtype, array in tensors.values())
        (folder / name).write_bytes(start + content)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


def write_packed(
    folder: Path, config: Mapping[str, Any], shapes: Shapes, packer: Packer, *, apart: bool = False
) -> tuple[Path, dict[str, Matrix]]:
    """A checkpoint with packed projections, and all its tensors exactly; `apart`: codes in a shard of their own."""
    draw = np.random.default_rng(0)
    codes: dict[str, Stored] = {}
    others: dict[str, Stored] = {}
    exact: dict[str, Matrix] = {}
    for name, shape in shapes.items():
        if "_proj" in name and len(shape) > 1:
            stored, exact[name] = packer(name, shape, draw)
            (first, content), *rest = stored.items()
            codes[first] = content
            (others if apart else codes).update(rest)
        else:
            codes[name] = as_bf16(draw.normal(1 if len(shape) == 1 else 0, 0.05, shape))
            exact[name] = from_bf16(codes[name][1]).astype(np.float64)
    return write_stored(folder, config, [codes, others] if apart else [codes]), exact


# ---- one code an element


def fp8(
    scales: Callable[[tuple[int, ...], np.random.Generator], tuple[Stored, Matrix]],
    *,
    suffix: str = "_scale_inv",
    dtype: str = "F8_E4M3",
) -> Packer:
    """`scales`: shape -> what is stored, and a factor for each element (or a shape that broadcasts)."""

    def pack(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> tuple[dict[str, Stored], Matrix]:
        if dtype == "F8_E4M3":
            codes = draw.integers(0, 0x7F, shape, np.uint8) | draw.integers(0, 2, shape, np.uint8) << 7
            values = np.array(mx.from_fp8(mx.array(codes), dtype=mx.float32))
        else:
            codes = draw.integers(0, 0x5C, shape, np.uint8)
            values = (codes.astype(np.uint16) << 8).view(np.float16)
        stored, factors = scales(shape, draw)
        return {name: (dtype, codes), name + suffix: stored}, values.astype(np.float64) * factors

    return pack


def blocks(*sizes: int) -> Callable[[tuple[int, ...], np.random.Generator], tuple[Stored, Matrix]]:
    """float32 scales, one for `sizes` elements of the last axes."""

    def make(shape: tuple[int, ...], draw: np.random.Generator) -> tuple[Stored, Matrix]:
        runs = [1] * (len(shape) - len(sizes)) + [
            size or whole for size, whole in zip(sizes, shape[-len(sizes) :], strict=True)
        ]
        grid = [-(-size // run) for size, run in zip(shape, runs, strict=True)]
        scales = draw.uniform(0.001, 0.002, grid).astype(np.float32)
        return ("F32", scales), spread(scales, runs, shape)

    return make


def spread(scales: Matrix, runs: Sequence[int], shape: tuple[int, ...]) -> Matrix:
    for axis, run in enumerate(runs):
        scales = np.repeat(scales, run, axis)
    return scales[tuple(map(slice, shape))].astype(np.float64)


def int8_with_zeros(group: int) -> Packer:
    """compressed-tensors' int-quantized, not symmetric."""

    def pack(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> tuple[dict[str, Stored], Matrix]:
        codes = draw.integers(-128, 128, shape, np.int8)
        zeros = draw.integers(-128, 128, (shape[0], shape[1] // group), np.int8)
        _, kept = as_bf16(draw.uniform(0.001, 0.002, zeros.shape))
        stored = {name: ("I8", codes), f"{name}_scale": ("BF16", kept), f"{name}_zero_point": ("I8", zeros)}
        scales = np.repeat(from_bf16(kept).astype(np.float64), group, 1)
        return stored, (codes.astype(np.int64) - np.repeat(zeros.astype(np.int64), group, 1)) * scales

    return pack


def int8(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> tuple[dict[str, Stored], Matrix]:
    """bitsandbytes' LLM.int8."""
    codes = draw.integers(-127, 128, shape, np.int8)
    scales = draw.uniform(0.1, 0.2, shape[0]).astype(np.float32)
    path = name.removesuffix("weight")
    stored = {name: ("I8", codes), f"{path}SCB": ("F32", scales), f"{path}weight_format": ("U8", np.array(0, np.uint8))}
    return stored, codes.astype(np.float64) * scales[:, None] / 127


# ---- integers in words


def words(codes: Matrix, bits: int) -> Matrix:
    """(rows, codes) -> (rows, words): a stream of bits, the lowest first."""
    found = (codes[..., None] >> np.arange(bits)) & 1
    return np.packbits(found.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little").view(np.int32)


def words_apart(codes: Matrix, bits: int) -> Matrix:
    """The same where no code crosses a word: the highest bits of one may be empty."""
    in_word = 32 // bits
    filled = np.pad(codes, ((0, 0), (0, -codes.shape[1] % in_word))).reshape(len(codes), -1, in_word)
    return (
        (filled.astype(np.uint64) << (np.arange(in_word) * bits).astype(np.uint64))
        .sum(-1)
        .astype(np.uint32)
        .view(np.int32)
    )


def gptq(bits: int, group: int, *, in_order: bool = True, less: int = 1) -> Packer:
    """`less`: what zeros are stored less than they are, as all did until a second format."""

    def pack(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> tuple[dict[str, Stored], Matrix]:
        outputs, inputs = shape
        of_input = np.arange(inputs, dtype=np.int32) // group
        if not in_order:
            of_input = draw.permutation(of_input)
        codes = draw.integers(0, 2**bits, (outputs, inputs))
        zeros = draw.integers(0, 2**bits, (inputs // group, outputs))
        scales = draw.uniform(0.001, 0.002, zeros.shape).astype(np.float16)
        path = name.removesuffix("weight")
        stored = {
            f"{path}qweight": ("I32", words(codes, bits).T),
            f"{path}qzeros": ("I32", words((zeros - less) % 2**bits, bits)),
            f"{path}scales": ("F16", scales),
            f"{path}g_idx": ("I32", of_input),
        }
        return stored, (codes - zeros.T[:, of_input]) * scales.T[:, of_input].astype(np.float64)

    return pack


def awq(group: int) -> Packer:
    def pack(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> tuple[dict[str, Stored], Matrix]:
        outputs, inputs = shape
        codes = draw.integers(0, 16, (inputs, outputs))
        zeros = draw.integers(0, 16, (inputs // group, outputs))
        scales = draw.uniform(0.001, 0.002, zeros.shape).astype(np.float16)
        path = name.removesuffix("weight")
        stored = {
            f"{path}qweight": ("I32", _awq_words(codes)),
            f"{path}qzeros": ("I32", _awq_words(zeros)),
            f"{path}scales": ("F16", scales),
        }
        exact = (codes - np.repeat(zeros, group, 0)) * np.repeat(scales, group, 0).astype(np.float64)
        return stored, exact.T

    return pack


def _awq_words(codes: Matrix) -> Matrix:
    """Within a word: the first, third, fifth, seventh, then the others."""
    in_word = codes.reshape(len(codes), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
    return words(in_word.reshape(len(codes), -1), 4)


def compressed(
    bits: int,
    group: int,
    *,
    symmetric: bool = True,
    words: Callable[[Matrix, int], Matrix] = words,
    zeros_apart: bool = False,
) -> Packer:
    """compressed-tensors' pack-quantized; `group` 0: one scale a row. `words` packs; `zeros_apart`: one byte each."""

    def pack(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> tuple[dict[str, Stored], Matrix]:
        outputs, inputs = shape
        size = group or inputs
        codes = draw.integers(0, 2**bits, shape)
        zeros = draw.integers(0, 2**bits, (outputs, inputs // size))
        _, kept = as_bf16(draw.uniform(0.001, 0.002, zeros.shape))
        stored: dict[str, Stored] = {
            f"{name}_packed": ("I32", words(codes, bits)),
            f"{name}_scale": ("BF16", kept),
            f"{name}_shape": ("I64", np.array(shape, np.int64)),
        }
        if symmetric:
            zeros[:] = 2 ** (bits - 1)
        else:
            signed = (zeros - 2 ** (bits - 1)).astype(np.int8)
            stored[f"{name}_zero_point"] = ("I8", signed) if zeros_apart else ("I32", words(zeros.T, bits).T)
        scales = np.repeat(from_bf16(kept).astype(np.float64), size, 1)
        return stored, (codes - np.repeat(zeros, size, 1)) * scales

    return pack


# ---- MLX's layouts


def fp4(kind: str) -> Packer:
    """mxfp4 (compressed-tensors), nvfp4 (compressed-tensors) or modelopt: two codes a byte, the lower half first."""
    size = 32 if kind == "mxfp4" else 16
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])

    def pack(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> tuple[dict[str, Stored], Matrix]:
        codes = draw.integers(0, 16, shape)
        packed = (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)
        grid = (shape[0], shape[1] // size)
        if kind == "mxfp4":
            exponents = draw.integers(118, 124, grid, np.uint8)
            factors = 2.0 ** (exponents.astype(np.float64) - 127)
            stored: dict[str, Stored] = {f"{name}_packed": ("U8", packed), f"{name}_scale": ("U8", exponents)}
        else:
            coded = draw.integers(0x20, 0x50, grid, np.uint8)
            overall = np.array([0.0078125 * 3], np.float32)
            factors = np.array(mx.from_fp8(mx.array(coded), dtype=mx.float32)).astype(np.float64)
            if kind == "nvfp4":
                factors = factors / (1 / overall.astype(np.float64)).astype(np.float32)
                stored = {f"{name}_packed": ("U8", packed), f"{name}_global_scale": ("F32", 1 / overall)}
            else:
                factors = factors * overall
                stored = {name: ("U8", packed), f"{name}_scale_2": ("F32", overall.reshape(()))}
            stored[f"{name}_scale"] = ("F8_E4M3", coded)
        return stored, values[codes] * np.repeat(factors, size, 1)

    return pack


def mlx(bits: int, group: int, mode: str = "affine") -> Packer:
    def pack(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> tuple[dict[str, Stored], Matrix]:
        matrix = mx.array(draw.normal(0, 0.05, shape).astype(np.float32)).astype(mx.bfloat16)
        codes, scales, *biases = mx.quantize(matrix, group_size=group, bits=bits, mode=mode)
        path = name.removesuffix("weight")
        kept = [scales.astype(mx.float32), *(bias.astype(mx.float32) for bias in biases)] if biases else [scales]
        exact = mx.dequantize(codes, *kept, group_size=group, bits=bits, mode=mode, dtype=mx.float32)
        stored: dict[str, Stored] = {name: ("U32", np.array(codes))}
        for leaf, array in zip(("scales", "biases"), (scales, *biases), strict=False):
            is_float = array.dtype == mx.bfloat16
            stored[f"{path}{leaf}"] = ("BF16", np.array(array.view(mx.uint16))) if is_float else ("U8", np.array(array))
        return stored, np.array(exact).astype(np.float64)

    return pack
