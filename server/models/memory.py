"""Whether a model fits into memory, asked before it is loaded. HTTP process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from quantize.machine import model_memory
from server.errors import InsufficientMemory
from server.settings.types import LifecycleSettings


class Memory:
    def __init__(self, settings: LifecycleSettings, available: Callable[[], int] | None = None) -> None:
        self._settings = settings
        self._available = available or available_bytes

    def check(self, folder: Path) -> None:
        """Raises InsufficientMemory when the model in `folder` would not fit. Reads the disk."""
        needed = int(weight_bytes(folder) * self._settings.memory_headroom)
        available = self._settings.memory_limit_bytes or self._available()
        if needed > available:
            raise InsufficientMemory(
                f"The model needs {gigabytes(needed)} of memory, {gigabytes(available)} are available."
            )


def weight_bytes(folder: Path) -> int:
    """The size of the files that are loaded, which is their size in memory."""
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors"))


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def available_bytes() -> int:
    """What a model may take now: free memory, or on a Mac the part of unified memory that the GPU may use."""
    return model_memory() if sys.platform == "darwin" else int(psutil.virtual_memory().available)
