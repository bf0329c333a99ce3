"""For how many tokens a model was made. HTTP process.

What config.json says is read here, if it is of a usual size; what it leaves to the class of the model is asked of a
worker that may import that.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from quantize.folder.context import as_count, stated_context
from quantize.foreign_json import read_object
from server.child.process import PATIENT, kill, start

log = logging.getLogger("configi.models")

# Bytes of a config.json that are parsed on the event loop.
_MOST_BYTES = 65_536
# It imports transformers and mlx-lm.
_TIMEOUT_S = 60


class ContextLengths:
    """`python` is the command that starts a worker's interpreter."""

    def __init__(self, python: Sequence[str] = (sys.executable, "-P")) -> None:
        self._python = python
        # Each takes a processor for seconds.
        self._turn = asyncio.Lock()

    async def of(self, folder: Path) -> int | None:
        """None if nothing says it. Cancelling ends the worker."""
        try:
            raw = await asyncio.to_thread(_beginning, folder / "config.json")
            if len(raw) <= _MOST_BYTES and (stated := stated_context(read_object(raw))):
                return stated
        except (OSError, ValueError):
            # Whoever needs the file says what is wrong with it.
            return None
        async with self._turn:
            return await self._asked(folder)

    async def _asked(self, folder: Path) -> int | None:
        process = await start([*self._python, "-m", "quantize.source.describe", str(folder)], PATIENT)
        try:
            answer, _ = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
            return as_count(json.loads(answer)["context_length"])
        except (TimeoutError, ValueError, KeyError, TypeError):
            log.warning("%s: what its config.json leaves out could not be found out", folder)
            return None
        finally:
            await kill(process)


def _beginning(path: Path) -> bytes:
    """All of it, if it is not too much."""
    with path.open("rb") as file:
        return file.read(_MOST_BYTES + 1)
