"""Whether a model's files are what they should be, asked before they are loaded. HTTP process.

In a worker, since a model's files choose what it costs: names, sizes, headers and bits every time, and the sha256 of
each file, which a model that configi built records, only when a file has changed since they were last found right.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from quantize.names import checked_name
from server.child.process import SOON
from server.models import worker
from server.settings.types import StorageSettings


class Verifier:
    def __init__(self, storage: StorageSettings, python: Sequence[str] = (sys.executable, "-P")) -> None:
        self._stamps = storage.cache_dir / "verified"
        self._python = python

    async def check(self, folder: Path, on_state: Callable[[str], None]) -> None:
        """Raises ModelUnavailable when the model in `folder` is damaged. `on_state` gets what takes long, in one line.

        Cancelling ends it.
        """
        stamp = self._stamps / checked_name(hashlib.sha256(str(folder).encode()).hexdigest())
        arguments = ["-m", "server.models.verifying", str(folder), str(stamp)]
        await worker.run([*self._python, *arguments], lambda line: on_state(line.text), SOON)
