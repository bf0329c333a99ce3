"""A model folder with its weights in memory: as mlx-lm loads it, or what mlx-lm cannot load as a build reads it.

So whatever can be built from can be served and measured as it is. mlx-lm keeps what is quantized in its own formats as
it is; everything else that is packed is multiplied out.
"""

from __future__ import annotations

import contextlib
import glob
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from quantize.errors import SourceError
from quantize.forward.checkpoint_weights import CheckpointModel
from quantize.source.compat import model_classes
from quantize.source.declared import declarations
from quantize.source.families import is_unused
from quantize.source.folder import FolderCheckpoint
from quantize.source.spelled_out import spelled_out
from quantize.source.unpack import Scaled

# Read at once: little enough to tell how far it is, enough to keep a disk busy.
_PART_BYTES = 2**28


def load_folder(folder: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Any:
    """mlx-lm's model, evaluated. No code in the folder is run. `on_progress` is told how many bytes of how many are
    read, except of what has to be unpacked.

    Raises:
        Exception: whatever mlx-lm raises on what neither can load.
    """
    if needs_unpacking(folder):
        return CheckpointModel(FolderCheckpoint(folder)).whole()
    try:
        model = load_as_mlx_lm(folder)
        _evaluate(model, on_progress)
        return model
    except MemoryError:
        raise
    except Exception:
        with contextlib.suppress(SourceError):
            return CheckpointModel(FolderCheckpoint(folder)).whole()
        raise


def _evaluate(model: Any, on_progress: Callable[[int, int], None]) -> None:
    weights = [value for _, value in tree_flatten(model.parameters()) if isinstance(value, mx.array)]
    total = sum(value.nbytes for value in weights)
    done, told = 0, 0
    part: list[mx.array] = []
    for value in weights:
        part.append(value)
        done += value.nbytes
        if done - told >= _PART_BYTES or done == total:
            mx.eval(part)
            on_progress(done, total)
            part, told = [], done


def load_as_mlx_lm(folder: Path) -> Any:
    """Not evaluated. Without what no text model has a place for, such as the extra heads of fine-tunes.

    Raises:
        ValueError: codes would be taken for weights.
        Exception: whatever mlx-lm raises.
    """
    from mlx_lm.utils import load_model

    with _without_magic(folder) as path:
        # trust_remote_code is given explicitly: a default may change.
        model, _ = load_model(path, lazy=True, get_model_classes=_classes, trust_remote_code=False)
    # A model that refers to itself would keep its weights until the garbage collector comes by.
    del model.sanitize
    for name, module in model.named_modules():
        weight = module.get("weight")
        # BitNet's module has one `weight_scale`.
        packed = "scales" in module or "weight_scale" in module
        if isinstance(weight, mx.array) and not packed and not mx.issubdtype(weight.dtype, mx.floating):
            raise ValueError(f"{name}.weight holds codes, and nothing says how they are packed")
    return model


def needs_unpacking(folder: Path) -> bool:
    """Whether the folder holds one code an element with scales beside it, as fp8 is published.

    Some of mlx-lm's models undo that for one layout, and others would take codes or scales for something else. Those
    that compute with exponents of two as scales keep them.
    """
    try:
        checkpoint = FolderCheckpoint(folder)
    except SourceError:
        # Whoever loads it says what is wrong.
        return False
    if any(_is_mxfp8(table) for table in declarations(checkpoint.config)):
        return False
    packings = [tensor.packing for tensor in checkpoint.tensors.values()]
    return any(isinstance(packing, Scaled) and packing.scale is not None for packing in packings)


def _is_mxfp8(table: Mapping[str, Any]) -> bool:
    """As mlx-lm has it."""
    in_tiles = table.get("scale_fmt") == "ue8m0" and table.get("weight_block_size") == [32, 32]
    return table.get("quant_method") == "mxfp8" or in_tiles


def _classes(config: dict[str, Any]) -> tuple[Any, Any]:
    model_class, arguments_class = model_classes(spelled_out(config))

    def made(arguments: Any) -> Any:
        model = model_class(arguments)
        # Of the class: what is on the instance is ours.
        sanitize = model.sanitize if hasattr(model, "sanitize") else dict

        def without_unused(weights: dict[str, mx.array]) -> dict[str, mx.array]:
            kept = sanitize(weights)
            return {name: value for name, value in kept.items() if not is_unused(name, model)}

        model.sanitize = without_unused
        return model

    class Arguments:
        """Of mlx-lm's own class."""

        @staticmethod
        def from_dict(given: dict[str, Any]) -> Any:
            return arguments_class.from_dict(spelled_out(given))

    return made, Arguments


@contextlib.contextmanager
def _without_magic(folder: Path) -> Iterator[Path]:
    """A path to `folder` that mlx-lm 0.32.2 does not take for a pattern, as it does one with brackets in it."""
    if not glob.has_magic(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        link = Path(temporary) / "model"
        link.symlink_to(folder.resolve())
        yield link
