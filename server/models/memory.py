"""Whether a model fits into memory, asked before it is loaded. HTTP process.

Only `quantize/machine.py` knows how much memory a machine has for a model; the engine process gets its limit from here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quantize.folder.model_files import weight_files
from quantize.machine import available_memory, fits
from server.errors import InsufficientMemory
from server.settings.types import LifecycleSettings


class Memory:
    """`available` gives the bytes that a model may take now."""

    def __init__(self, settings: LifecycleSettings, available: Callable[[], int] = available_memory) -> None:
        self._settings = settings
        self._available = available

    def admit(self, folder: Path) -> int:
        """The bytes that the model in `folder` may take, with all that belongs to it. Reads the disk.

        Raises:
            InsufficientMemory: its weights and the headroom need more.
        """
        weights, headroom = weight_bytes(folder), int(self._settings.memory_headroom)
        limit = int(self._settings.memory_limit) or self._available()
        if not fits(weights, limit, headroom):
            raise InsufficientMemory(
                f"The model needs {_gigabytes(weights)} of memory for its weights and {_gigabytes(headroom)} to work "
                f"with; {_gigabytes(limit)} is available."
            )
        return limit


def weight_bytes(folder: Path) -> int:
    """The size of the files that are loaded, which is their size in memory."""
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    return sum(sizes[name] for name in (weight_files(sizes, None) if sizes else ()))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"
