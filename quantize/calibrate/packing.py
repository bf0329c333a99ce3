"""Codes as MLX stores them: `bits` each, little-endian, one after another through uint32 words.

32 codes fill `bits` words exactly, whatever the width, so each of the 32 places has a fixed word and shift.
"""

from __future__ import annotations

import mlx.core as mx

from quantize.folder.quant_spec import QuantSpec

_WORD = 32


def pack(codes: mx.array, spec: QuantSpec) -> mx.array:
    """(..., columns) whole numbers -> (..., columns * bits / 32) uint32, as `mx.quantize` packs them."""
    lanes = codes.astype(mx.uint32).reshape(*codes.shape[:-1], -1, _WORD)
    words = [mx.zeros(lanes.shape[:-1], dtype=mx.uint32) for _ in range(spec.bits)]
    for place in range(_WORD):
        word, shift = divmod(place * spec.bits, _WORD)
        words[word] = words[word] | (lanes[..., place] << shift)
        if shift + spec.bits > _WORD:
            words[word + 1] = words[word + 1] | (lanes[..., place] >> (_WORD - shift))
    return mx.stack(words, axis=-1).reshape(*codes.shape[:-1], -1)


def unpack(packed: mx.array, spec: QuantSpec) -> mx.array:
    """The inverse of `pack`: (..., words) uint32 -> (..., columns) uint32."""
    words = packed.reshape(*packed.shape[:-1], -1, spec.bits)
    lanes = []
    for place in range(_WORD):
        word, shift = divmod(place * spec.bits, _WORD)
        code = words[..., word] >> shift
        if shift + spec.bits > _WORD:
            code = code | (words[..., word + 1] << (_WORD - shift))
        lanes.append(code & (2**spec.bits - 1))
    return mx.stack(lanes, axis=-1).reshape(*packed.shape[:-1], -1)
