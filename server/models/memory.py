"""Whether a model fits into memory, asked before it is loaded. HTTP process.

The macOS part follows Metal's documented and observed limits; it was tested with stand-in numbers only and has not
been run on Metal.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from server.errors import InsufficientMemory
from server.settings import LifecycleSettings

_MIB = 2**20
_GIB = 2**30


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
    if sys.platform == "darwin":
        return gpu_share(int(psutil.virtual_memory().total), _wired_limit_mb())
    return int(psutil.virtual_memory().available)


def gpu_share(total: int, wired_limit_mb: int) -> int:
    """Metal's recommended working set: the limit the user has set, else 2/3 of the memory, 3/4 above 36 GiB."""
    if wired_limit_mb > 0:
        return wired_limit_mb * _MIB
    return total * 3 // 4 if total > 36 * _GIB else total * 2 // 3


def _wired_limit_mb() -> int:
    """0 is the system's own value for "not set"."""
    answer = subprocess.run(
        ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"], capture_output=True, text=True, timeout=5, check=False
    )
    return int(answer.stdout) if answer.stdout.strip().isdigit() else 0
