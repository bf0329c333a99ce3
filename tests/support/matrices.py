"""The matrices of a layer of an mlx-lm model, and what they are given while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx

from quantize.forward.hooks import Hook, hooked
from quantize.forward.routing import by_expert


def matrices(layer: Any) -> dict[str, Any]:
    """By path below the layer, each that can be quantized: linear, or of stacked experts."""
    return {path: module for path, module in layer.named_modules() if hasattr(module, "to_quantized")}


@contextlib.contextmanager
def calls_of_experts(modules: Mapping[str, Any]) -> Iterator[dict[str, tuple[mx.array, mx.array]]]:
    """While open, by path, the rows that each of the `modules` was called with last, and the expert of each."""
    noted: dict[str, tuple[mx.array, mx.array]] = {}

    def noting(path: str) -> Hook:
        def note(call: Any, x: mx.array, indices: mx.array, *args: Any, **kwargs: Any) -> Any:
            noted[path] = by_expert(x, indices)
            return call(x, indices, *args, **kwargs)

        return note

    with hooked((module, noting(path)) for path, module in modules.items()):
        yield noted
