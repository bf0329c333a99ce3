"""A model as the engine asks it. Runs in the engine process."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn


class Float32Logits:
    """The model with its logits in float32: in bf16 they round to 3 digits, too coarse for logprobs and sampling.

    Lazy like everything in MLX: during prefill nobody asks for the logits and nothing is computed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, tokens: mx.array, cache: list[Any] | None = None) -> mx.array:
        logits: mx.array = self._model(tokens, cache=cache)
        return logits.astype(mx.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
