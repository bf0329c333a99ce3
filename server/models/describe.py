"""For how many tokens a model was made. HTTP process.

What config.json says is read here; what it leaves to the class of the model is asked of a worker that may import that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from quantize.folder.context import as_count, stated_context
from quantize.foreign_json import read_object

log = logging.getLogger("configi.models")

# It imports transformers and mlx-lm.
_TIMEOUT_S = 60


class Describer:
    """`python` is the command that starts a worker's interpreter."""

    def __init__(self, python: Sequence[str] = (sys.executable, "-P")) -> None:
        self._python = python

    async def context_length(self, folder: Path) -> int | None:
        """None if nothing says it. Cancelling ends the worker."""
        try:
            config = read_object(await asyncio.to_thread((folder / "config.json").read_bytes))
        except (OSError, ValueError):
            # Whoever needs the file says what is wrong with it.
            return None
        return stated_context(config) or await self._asked(folder)

    async def _asked(self, folder: Path) -> int | None:
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        command = [*self._python, "-m", "quantize.source.describe", str(folder)]
        process = await asyncio.create_subprocess_exec(*command, stdin=null, stdout=pipe, stderr=null)
        try:
            answer, _ = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
            return as_count(json.loads(answer)["context_length"])
        except (TimeoutError, ValueError, KeyError, TypeError):
            log.warning("%s: what its config.json leaves out could not be found out", folder)
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
