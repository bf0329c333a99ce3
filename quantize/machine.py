"""How much memory a model may use on this machine: the one place that knows.

The macOS part follows Metal's documented and observed limits; it was tested with stand-in numbers only and has not been
run on Metal.
"""

from __future__ import annotations

import subprocess
import sys

import psutil

_MIB = 2**20
_GIB = 2**30


def metal_limit(memory: int, wired_limit_mb: int = 0) -> int:
    """Bytes of `memory` that the GPU of a Mac may use: what the user has set, else 2/3, or 3/4 above 36 GiB."""
    if wired_limit_mb > 0:
        return wired_limit_mb * _MIB
    return memory * 3 // 4 if memory > 36 * _GIB else memory * 2 // 3


def model_memory() -> int:
    """Bytes that a model may take on this machine, regardless of what else is running."""
    memory = int(psutil.virtual_memory().total)
    return metal_limit(memory, _wired_limit_mb()) if sys.platform == "darwin" else memory


def available_memory() -> int:
    """Bytes that a model may take now: on a Mac the GPU's share, elsewhere what is free."""
    return model_memory() if sys.platform == "darwin" else int(psutil.virtual_memory().available)


def _wired_limit_mb() -> int:
    """0 is macOS's own value for "not set"."""
    answer = subprocess.run(
        ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"], capture_output=True, text=True, timeout=5, check=False
    )
    return int(answer.stdout) if answer.stdout.strip().isdigit() else 0
