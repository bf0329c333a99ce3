"""Whether a model's files are what they should be, asked before they are loaded. HTTP process.

Names, sizes, headers and bits every time, in milliseconds. The sha256 of each file, which a model that configi built
records, only when a file has changed since they were last found right: in a worker, since it takes seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from quantize.names import checked_name
from server.errors import ModelUnavailable
from server.models import worker
from server.settings.types import StorageSettings

log = logging.getLogger("configi.verified")


class Verifier:
    def __init__(self, storage: StorageSettings, python: Sequence[str] = (sys.executable, "-P")) -> None:
        self._stamps = storage.cache_dir / "verified"
        self._python = python

    async def check(self, folder: Path, on_state: Callable[[str], None]) -> None:
        """Raises ModelUnavailable when the model in `folder` is damaged. `on_state` gets what takes long, in one line.

        Cancelling ends it.
        """
        stamp = self._stamps / checked_name(hashlib.sha256(str(folder).encode()).hexdigest())
        if await asyncio.to_thread(_is_verified, folder, stamp):
            return
        on_state("checking the sha256 of its files")
        arguments = ["-m", "server.models.verifying", str(folder), str(stamp)]
        await worker.run([*self._python, *arguments], lambda _: None)


def _is_verified(folder: Path, stamp: Path) -> bool:
    """Raises ModelUnavailable at the first thing that is wrong."""
    from quantize.folder.manifest import MANIFEST
    from quantize.folder.verify import examine, is_unchanged

    if not folder.is_dir():
        raise ModelUnavailable("The model's files are gone.")
    found = examine(folder, thorough=False)
    for warning in found.warnings:
        log.warning("%s: %s", folder, warning)
    for problem in found.problems:
        log.error("%s: %s", folder, problem)
        raise ModelUnavailable(damaged(problem))
    return not (folder / MANIFEST).is_file() or is_unchanged(folder, stamp)


def damaged(problem: str) -> str:
    return f"The model's files are damaged, so it is not loaded: {problem}"
