"""Tokenizers that transformers has to put together, and where they are kept. Text process.

The one place that imports transformers, for its readers of tokenizer files: they need no torch. It takes a second and
100 MB, so what it makes is kept in the cache folder as a tokenizer.json of its own, under a name made of what it was
made of; the next process opens that. Nothing of the model's own Python code is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from quantize.printable import echo

_READ = (".json", ".txt", ".model", ".tiktoken")
_SPECIAL = "special_tokens_map.json"


class NotConverted(Exception):
    """`reason` is a sentence without paths."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Conversions:
    """`folder` keeps them; None keeps none."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def convert(self, model: Path) -> tuple[Tokenizer, dict[str, str]]:
        """The tokenizer of a model folder, and the texts of its special tokens by name.

        Raises:
            NotConverted: transformers cannot read it.
        """
        place = None if self._folder is None else self._folder / _key(model)
        if place is not None:
            # Absent, or spoiled since: it is made again.
            with contextlib.suppress(Exception):
                backend = Tokenizer.from_file(str(place / "tokenizer.json"))
                return backend, json.loads((place / _SPECIAL).read_bytes())
        backend, special = _ask_transformers(model)
        if place is not None:
            _keep(place, backend, special)
        return backend, special


def _key(model: Path) -> str:
    """Of the bytes of all that a tokenizer may be made of, and of who makes it."""
    digest = hashlib.sha256(f"transformers {version('transformers')}, tokenizers {version('tokenizers')}".encode())
    for file in sorted(model.iterdir()):
        if file.suffix in _READ and not file.name.endswith(".index.json") and file.is_file():
            digest.update(f"\0{file.name}\0{file.stat().st_size}\0".encode(errors="surrogateescape"))
            digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


def _ask_transformers(model: Path) -> tuple[Tokenizer, dict[str, str]]:
    try:
        # Stdout is the pipe to the parent.
        with contextlib.redirect_stdout(sys.stderr):
            made = _made(model)
    except Exception as error:
        echo(f"transformers: {type(error).__name__}: {error}", err=True)
        raise NotConverted(_reason(error)) from error
    backend = getattr(made, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise NotConverted(f"{type(made).__name__} exists in Python only.")
    special = {name: str(text) for name, text in made.special_tokens_map.items() if isinstance(text, str)}
    return backend, special


def _made(model: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    except Exception:
        # Also what says that it needs code of its own may have a tokenizer.json, which then speaks for itself.
        if not (model / "tokenizer.json").is_file():
            raise
        return PreTrainedTokenizerFast.from_pretrained(model, local_files_only=True)


def _reason(error: Exception) -> str:
    """What is missing, where that is it; all else may name files."""
    if isinstance(error, ImportError):
        return next((line for line in str(error).splitlines() if line.strip()), "a library is missing.")
    return f"{type(error).__name__}."


def _keep(place: Path, backend: Tokenizer, special: dict[str, str]) -> None:
    """It appears by one rename. Where nothing can be kept, the next process converts again."""
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=place.parent, prefix="."))
        try:
            (made / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
            (made / _SPECIAL).write_text(json.dumps(special), encoding="utf-8")
            made.rename(place)
        finally:
            shutil.rmtree(made, ignore_errors=True)
