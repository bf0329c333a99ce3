"""Loading a model folder, with one clear sentence for each thing that can be wrong. Runs in the engine process."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from quantize.errors import first_line
from quantize.foreign_json import read_json
from quantize.forward.loading import load_folder
from server.engine.experts import fuse

log = logging.getLogger("configi.engine")


class LoadError(Exception):
    """The folder cannot be served; the message is fit for users."""


def load(
    folder: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[nn.Module, int, int]:
    """The model, its vocabulary size and the bytes of its weights. `on_progress`: so many of these are in memory.

    Raises:
        LoadError: for whatever is wrong with the folder. Nothing in it is ever executed: code files are ignored
            and `model_file` is refused.
    """
    _check_config(folder)
    try:
        model = load_folder(folder, on_progress)
    except MemoryError:
        raise
    except Exception as error:
        # mlx-lm and MLX raise ValueError, KeyError, TypeError, RuntimeError, ... depending on the damage.
        raise LoadError(_sentence(error, folder)) from error
    if fused := fuse(model):
        log.info("gate and up of the experts of %d layers are fused", fused)
    weights = dict(tree_flatten(model.parameters()))
    return model, vocabulary_size(model), sum(w.nbytes for w in weights.values() if isinstance(w, mx.array))


def vocabulary_size(model: nn.Module) -> int:
    """The ids that are safe to look up and to bias: those that the embeddings and the logits of the weights have.

    config.json only claims a number, and MLX reads whatever memory lies behind an index that is too large. Raises
    LoadError when the weights do not go together.
    """
    try:
        # Lazy: shapes without computing anything.
        width = int(model(mx.array([[0]])).shape[-1])
    except Exception as error:
        if "No Metal back-end" in str(error):
            raise LoadError("mlx-lm runs this architecture on Metal only, which is absent here.") from error
        raise LoadError(f"The model's weights do not fit together: {first_line(error)}") from error
    tables = (nn.Embedding, nn.QuantizedEmbedding)
    rows = [
        int(module.weight.shape[0])
        for path, module in model.named_modules()
        # All that tokens are looked up in; positions, token types and biases have tables of their own.
        if isinstance(module, tables) and not re.search("pos|wpe|type|bias", path.rpartition(".")[2])
    ]
    if not rows:
        raise LoadError("The model has no embedding.")
    return min([width, *rows])


def _check_config(folder: Path) -> None:
    try:
        config: Any = read_json((folder / "config.json").read_bytes())
    except FileNotFoundError:
        raise LoadError("The model folder has no config.json.") from None
    except ValueError as error:
        raise LoadError("The model's config.json is not valid JSON.") from error
    if not isinstance(config, dict):
        raise LoadError("The model's config.json is not an object.")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+", model_type):
        raise LoadError("The model's config.json names no valid model_type.")
    if "model_file" in config:
        raise LoadError("The model comes with its own code (model_file), which configi never runs.")


def _sentence(error: Exception, folder: Path) -> str:
    """MLX's reason in one line without the path of the folder; it lists tensors below one another."""
    if isinstance(error, ImportError):
        return "mlx-lm cannot run models of this type without a package that is not installed."
    reason = " ".join(str(error).split())[:300].replace(str(folder), "the folder")
    if isinstance(error, KeyError | AttributeError | TypeError):
        reason = f"its config.json is missing or misnaming something ({type(error).__name__}: {reason})"
    return f"The model's files could not be loaded: {reason}"
