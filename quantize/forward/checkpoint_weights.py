"""A checkpoint in its own names as an mlx-lm model, the weights of one part at a time.

Where each tensor goes is what the builder's tables say (`families.py`).
"""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from quantize.errors import SourceError
from quantize.source.checkpoint import Checkpoint, SourceTensor
from quantize.source.families import Placement, family_of, place


class CheckpointModel:
    """Raises SourceError for a family or a tensor without a table."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.label = checkpoint.label
        family = family_of(checkpoint.config)
        self._of_part: dict[int | None, list[tuple[SourceTensor, list[Placement]]]] = defaultdict(list)
        for tensor in checkpoint.tensors.values():
            if placed := place(tensor.name, family, checkpoint.config):
                self._of_part[placed[0].layer].append((tensor, placed))

    @property
    def identity(self) -> str:
        return self._checkpoint.identity

    def make(self, layer: int | None) -> Any:
        model = _empty(self._checkpoint.config)
        weights = self._read(layer)
        if hasattr(model, "sanitize"):
            weights = model.sanitize(weights)
        known = {name for name, _ in tree_flatten(model.parameters())}
        model.load_weights([item for item in weights.items() if item[0] in known], strict=False)
        model.eval()
        return model

    def _read(self, part: int | None) -> dict[str, mx.array]:
        found: dict[str, mx.array] = {}
        stacks: dict[str, dict[int, mx.array]] = defaultdict(dict)
        by_shard: dict[str, list[tuple[SourceTensor, list[Placement]]]] = defaultdict(list)
        for tensor, placed in self._of_part[part]:
            by_shard[tensor.shard].append((tensor, placed))
        for shard, tensors in by_shard.items():
            with self._checkpoint.open(shard) as reader:
                for tensor, placed in tensors:
                    whole = reader.rows(tensor, 0, tensor.matrix[0]).reshape(tensor.shape)
                    for placement in placed:
                        index, parts = placement.part
                        value = whole if parts == 1 else mx.split(whole, parts, axis=-2)[index]
                        if placement.expert is None:
                            found[placement.name] = value
                        else:
                            stacks[placement.name][placement.expert] = value
                mx.eval(list(found.values()), [list(stack.values()) for stack in stacks.values()])
        for name, stack in stacks.items():
            found[name] = mx.stack([stack[expert] for expert in range(len(stack))])
        return found


def _empty(config: Any) -> Any:
    from mlx_lm.utils import _get_classes

    try:
        model_class, arguments_class = _get_classes(dict(config))
        # Some argument classes change nested tables in place.
        return model_class(arguments_class.from_dict(copy.deepcopy(dict(config))))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"mlx-lm makes no model of the source's config.json ({error}).") from error
