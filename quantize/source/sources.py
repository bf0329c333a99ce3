"""A source by name: a folder, a .gguf file, or a repository of the Hub."""

from __future__ import annotations

from pathlib import Path

from quantize.errors import SourceError
from quantize.source.checkpoint import Checkpoint, HubOptions
from quantize.source.folder import FolderCheckpoint


def open_checkpoint(source: str, options: HubOptions) -> Checkpoint:
    """`source` is a folder, a .gguf file, or a Hub repository with an optional @revision. Raises SourceError."""
    check_name(source)
    path = Path(source).expanduser()
    if source.endswith(".gguf"):
        from quantize.source.gguf import GgufCheckpoint

        return GgufCheckpoint(path)
    if path.is_dir():
        return FolderCheckpoint(path)
    from quantize.source.hub import hub_checkpoint

    return hub_checkpoint(source, options)


def check_name(source: str) -> None:
    """Raises SourceError where `source` can only be a name mistyped. Opens nothing."""
    if source.endswith(".gguf") or Path(source).expanduser().is_dir():
        return
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise SourceError(f"{source} is neither a folder, a .gguf file nor the name of a Hub repository (owner/name).")
