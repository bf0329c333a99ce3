"""A checkpoint in its own names as an mlx-lm model, the weights of one part at a time.

Where each tensor goes is what the builder's plan says too (`families.py`).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from quantize.source.checkpoint import Checkpoint
from quantize.source.families import Placed, PlacedView, place
from quantize.source.mlx_model import empty_model
from quantize.source.ties import explicit_about_ties
from quantize.source.views import read


class CheckpointModel:
    """Raises SourceError for a model that mlx-lm does not know, or a tensor without a place in it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.label = checkpoint.label
        self._config = explicit_about_ties(checkpoint.config, checkpoint.tensors)
        self._of_part: dict[int | None, list[Placed]] = defaultdict(list)
        for placed in place(checkpoint.tensors, self._config):
            self._of_part[placed.layer].append(placed)

    @property
    def identity(self) -> str:
        return self._checkpoint.identity

    def make(self, layer: int | None) -> Any:
        return self._with(self._read(layer), strict=False)

    def whole(self) -> Any:
        """With all weights, evaluated. Raises ValueError when one is missing or has another shape."""
        weights: dict[str, mx.array] = {}
        for part in self._of_part:
            weights |= self._read(part)
        model = self._with(weights, strict=True)
        mx.eval(model.parameters())
        return model

    def _with(self, weights: dict[str, mx.array], *, strict: bool) -> Any:
        model = empty_model(self._config)
        if hasattr(model, "sanitize"):
            weights = model.sanitize(weights)
        known = {name for name, _ in tree_flatten(model.parameters())}
        model.load_weights([item for item in weights.items() if item[0] in known], strict=strict)
        model.eval()
        return model

    def _read(self, part: int | None) -> dict[str, mx.array]:
        pieces: dict[str, dict[int, mx.array]] = defaultdict(dict)
        by_shard: dict[str, list[tuple[str, int, PlacedView]]] = defaultdict(list)
        for placed in self._of_part[part]:
            for number, piece in enumerate(placed.pieces):
                by_shard[piece.source.shard].append((placed.name, number, piece))
        for shard, wanted in by_shard.items():
            with self._checkpoint.open(shard) as reader:
                for name, number, piece in wanted:
                    pieces[name][number] = read(reader, piece.source, piece.view, 0, piece.view.matrix[0])
                mx.eval([list(of_tensor.values()) for of_tensor in pieces.values()])
        return {
            placed.name: mx.concatenate([pieces[placed.name][n] for n in range(len(placed.pieces))]).reshape(
                placed.shape
            )
            for placed in self._of_part[part]
        }
