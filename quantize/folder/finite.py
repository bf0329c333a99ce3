"""Whether an array of floats is free of NaN and infinity, from the bits alone: numpy has no bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantize.errors import SourceError

# Integer type, mask without the sign bit, and the smallest pattern that is an infinity or NaN.
_BITS: dict[str, tuple[type[np.unsignedinteger[Any]], int, int]] = {
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "F32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
}


def is_float(dtype: str) -> bool:
    """Whether elements of `dtype` can be other than finite."""
    return dtype in _BITS


def all_finite(raw: Any, dtype: str) -> bool:
    """`raw` is a buffer with the bytes of `dtype` elements. Raises SourceError for a dtype that holds no weights."""
    if dtype not in _BITS:
        raise SourceError(f"{dtype} is not a dtype of weights or scales.")
    integer, mask, infinity = _BITS[dtype]
    values = np.frombuffer(raw, integer)
    return not values.size or bool((values & integer(mask)).max() < infinity)
