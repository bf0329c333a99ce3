"""A GGUF of a llama-type model as a checkpoint: weights, tokenizer and chat template are all in the one file.

MLX reads the file, all of it; block-quantized tensors arrive as its own affine weight, scales and biases. Here they are
dequantized, renamed, and llama.cpp's permutation of the rows of q and k is undone, a few rows at a time.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx

from quantize.errors import SourceError
from quantize.folder.hashing import sha256_of
from quantize.folder.safetensors_format import nbytes
from quantize.source.checkpoint import Shard, ShardReader, SourceTensor, read_errors
from quantize.source.folder import DTYPES
from quantize.source.gguf_metadata import auxiliary_files, config_of

_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(?P<block>\d+)\.)?(?P<role>\w+)\.weight")
# MLX reads Q4_0, Q4_1 and Q8_0 as affine groups of 32; the packed width tells the bits.
_GROUP = 32
_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


class GgufCheckpoint:
    """`dtype` is that of the rows read: what the model computes in. Raises SourceError for a kind that is not known."""

    repository = None
    revision = None
    scratch_bytes = 0

    def __init__(self, file: Path, dtype: str = "BF16") -> None:
        self._file = file
        self._weights, self._metadata = _load(file)
        self.label = file.name
        self.config: Mapping[str, Any] = config_of(
            self._metadata, tied="output.weight" not in self._weights, dtype=_DTYPE_NAMES[dtype]
        )
        self._names = {mlx_name(name): name for name in self._weights if name.endswith(".weight")}
        shapes = {name: self._shape(stored) for name, stored in self._names.items()}
        self.tensors: Mapping[str, SourceTensor] = {
            name: SourceTensor(name, dtype, shape, file.name, nbytes(dtype, shape)) for name, shape in shapes.items()
        }
        self.shards: Sequence[Shard] = [Shard(file.name, file.stat().st_size)]

    @cached_property
    def identity(self) -> str:
        with read_errors(self.label):
            return sha256_of(self._file)

    def auxiliary_files(self) -> Mapping[str, bytes]:
        return auxiliary_files(self._metadata)

    @contextlib.contextmanager
    def open(self, shard: str, prefetch: str | None = None) -> Iterator[ShardReader]:
        yield self

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> mx.array:
        name = self._names[tensor.name]
        rows = self._order(name, tensor.matrix[0])[start:stop]
        base = name.removesuffix(".weight")
        weight = self._weights[name].reshape(tensor.matrix[0], -1)[rows]
        if (scales := self._weights.get(f"{base}.scales")) is not None:
            bits = weight.shape[-1] // scales.shape[-1]
            scales, biases = (self._weights[f"{base}.{part}"][rows].astype(mx.float32) for part in ("scales", "biases"))
            weight = mx.dequantize(weight, scales, biases, group_size=_GROUP, bits=bits)
        return weight.astype(mx.float32).astype(DTYPES[tensor.dtype])

    def _shape(self, name: str) -> tuple[int, ...]:
        weight, scales = self._weights[name], self._weights.get(f"{name.removesuffix('.weight')}.scales")
        return weight.shape if scales is None else (*weight.shape[:-1], scales.shape[-1] * _GROUP)

    def _order(self, name: str, rows: int) -> mx.array:
        if "attn_q." in name:
            return row_order(rows, self.config["num_attention_heads"])
        if "attn_k." in name:
            return row_order(rows, self.config["num_key_value_heads"])
        return mx.arange(rows)


def row_order(rows: int, heads: int) -> mx.array:
    """Which row of the GGUF is each row of Hugging Face's llama: llama.cpp interleaves the rotary pairs of a head."""
    return mx.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(rows)


def mlx_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    match = _NAME.fullmatch(name)
    table = _IN_BLOCK if match and match["block"] else _WHOLE
    if match is None or match["role"] not in table:
        raise SourceError(f"The GGUF holds a tensor that llama-type models do not have: {name}.")
    path = table[match["role"]]
    return f"model.layers.{match['block']}.{path}.weight" if match["block"] else f"{path}.weight"


def _load(file: Path) -> tuple[dict[str, mx.array], dict[str, Any]]:
    if not file.is_file():
        raise SourceError(f"There is no file {file}.")
    try:
        loaded: Any = mx.load(str(file), format="gguf", return_metadata=True)
    except (RuntimeError, ValueError) as error:
        raise SourceError(f"{file.name} cannot be read as GGUF.") from error
    weights, metadata = loaded
    # Threads share them.
    mx.eval(weights)
    return weights, metadata
