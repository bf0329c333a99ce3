"""Which matrices of a model stay as they are stored, because some of mlx-lm's code computes with them unquantized.

A quantized module multiplies out its own codes. Code that takes the `weight` of another module takes codes for numbers:
so do some families with tied embeddings, whose logits are `h @ embed_tokens.weight.T`. Which ones is seen in a pass of
the model itself, so no release of mlx-lm needs a list. MLX evaluates lazily: nothing is computed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from quantize.source.mlx_model import empty_model, quantizable_modules


def left_alone(config: Mapping[str, Any]) -> frozenset[str]:
    """The paths of those modules. Raises SourceError when mlx-lm knows no such model."""
    return _said(empty_model(config)) | _read_by_others(empty_model(config))


def _said(model: Any) -> frozenset[str]:
    """Those that mlx-lm itself says it never quantizes."""
    says = getattr(model, "quant_predicate", None)
    if says is None:
        return frozenset()
    modules = dict(model.named_modules())
    return frozenset(path for path in quantizable_modules(model) if says(path, modules[path]) is False)


def _read_by_others(model: Any) -> frozenset[str]:
    """Those whose weight is read past them when `model`, which is of no use after this, is given two tokens."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    read: set[str] = set()
    modules = dict(model.named_modules())
    for path in quantizable_modules(model):
        modules[path].__class__ = _watched(type(modules[path]), path, read)
    model.eval()
    # What runs on Metal alone cannot be asked elsewhere, and what cannot run at all is for others to tell of.
    with contextlib.suppress(Exception):
        model(mx.array([[0, 1]]), cache=make_prompt_cache(model))
    return frozenset(read)


def _watched(kind: Any, path: str, read: set[str]) -> Any:
    """`kind` with a `weight` that notes who takes it. Its own methods may: the quantized class has others."""

    def weight(self: Any) -> Any:
        if sys._getframe(1).f_locals.get("self") is not self:
            read.add(path)
        return self["weight"]

    return type(kind.__name__, (kind,), {"weight": property(weight)})
