"""A model's tokenizer, as mlx-lm loads it: from its folder, or from the small files of a checkpoint."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantize.errors import SourceError
from quantize.files import write_all

# Else transformers warns of every longer text that it would give wrong results.
_LONGEST = 10**9
_SHOWN = 300


def tokenizer_in(folder: Path, name: str) -> Any:
    """`name` tells whose it is. Whole documents are encoded, however long. Raises SourceError: it cannot be loaded."""
    from mlx_lm.utils import load_tokenizer

    try:
        return load_tokenizer(folder, {"model_max_length": _LONGEST})
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # transformers checks config.json by classes of its own, whose errors are of any kind; a panic of Rust is no
        # Exception.
        # Its first line alone names only which check it was.
        reason = " ".join(str(error).split())[:_SHOWN] or type(error).__name__
        raise SourceError(f"The tokenizer of {name} cannot be loaded: {reason}") from error


def tokenizer_of(config: Mapping[str, Any], files: Mapping[str, bytes], name: str) -> Any:
    """Of a checkpoint with these files beside its weights. Raises SourceError: it cannot be loaded."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_all(folder, files)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return tokenizer_in(folder, name)
