"""mlx-lm models whose weights are not in memory yet, made afresh for each part of a pass.

What a part of a model needs is read when it is evaluated, and goes with the model object: that is what bounds the
memory of a pass by the largest part. Two kinds: a folder that mlx-lm loads (quantized or not), whose arrays are lazy
by themselves; and any other checkpoint (GGUF, fp8, a Hub repository), whose tensors are read by part.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
from mlx.utils import tree_map

from quantize.errors import SourceError, first_line
from quantize.forward.checkpoint_weights import CheckpointModel
from quantize.forward.loading import load_as_mlx_lm, needs_unpacking
from quantize.source.checkpoint import HubOptions
from quantize.source.folder import FolderCheckpoint
from quantize.source.sources import open_checkpoint


class LazyModel(Protocol):
    @property
    def label(self) -> str: ...
    @property
    def identity(self) -> str:
        """Changes whenever the weights may have."""
        ...

    def make(self, layer: int | None) -> Any:
        """A new mlx-lm `Model`. The weights of `layer` can be evaluated, or with None those outside of the layers.

        Raises:
            SourceError: the model cannot be read, or is of a type that mlx-lm does not know.
        """
        ...


def open_model(source: str, options: HubOptions, *, float32: bool = False) -> LazyModel:
    """`source`: an MLX model folder, or whatever a build takes. Raises SourceError.

    `float32`: every weight as float32, quantized ones dequantized (exactly): what a CPU computes fastest, and the
    same for both sides of a comparison.
    """
    folder = Path(source).expanduser()
    made = _of_folder(folder) if folder.is_dir() else None
    made = made or CheckpointModel(open_checkpoint(source, options))
    return InFloat32(made) if float32 else made


def _of_folder(folder: Path) -> LazyModel | None:
    """As mlx-lm loads it; None for what is read as a build reads it, packed or in names of others."""
    if needs_unpacking(folder):
        return None
    plain = FolderModel(folder)
    try:
        # Reads headers alone.
        plain.make(None)
        return plain
    except SourceError:
        with contextlib.suppress(SourceError):
            return CheckpointModel(FolderCheckpoint(folder))
        raise


class FolderModel:
    """A folder as mlx-lm loads it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.label = folder.resolve().name

    @property
    def identity(self) -> str:
        files = sorted([*self._folder.glob("*.safetensors"), *self._folder.glob("config.json")])
        return str([(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files])

    def make(self, layer: int | None) -> Any:
        try:
            model = load_as_mlx_lm(self._folder)
        except FileNotFoundError:
            raise SourceError(f"{self.label} has no config.json or no model*.safetensors.") from None
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise SourceError(f"mlx-lm cannot load {self.label}: {first_line(error).rstrip('.')}.") from error
        return model


class InFloat32:
    """Every weight as float32: MLX's CPU backend multiplies by no stack of bfloat16 experts."""

    def __init__(self, model: LazyModel) -> None:
        self._model = model
        self.label = model.label

    @property
    def identity(self) -> str:
        return f"{self._model.identity} in float32"

    def make(self, layer: int | None) -> Any:
        # Its module loads all of mlx-lm.
        from quantize.forward.grouped_experts import group_experts

        made = in_float32(self._model.make(layer))
        if layer is not None:
            # The other layers are called to see what they are given, and never evaluated.
            group_experts(made.layers[layer])
        return made


def in_float32(model: Any) -> Any:
    """`model` with float32 weights, quantized modules made plain ones of the same values. Evaluates nothing."""
    from mlx_lm.utils import dequantize_model

    # Scales first: codes are multiplied out in the dtype of their scales.
    model.update(tree_map(_float32, model.parameters()))
    model = dequantize_model(model)
    # Modes whose scales are no floats come out in bfloat16, which holds their values exactly.
    model.update(tree_map(_float32, model.parameters()))
    return model


def _float32(value: mx.array) -> mx.array:
    return value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value
