"""How much memory a model may use on this machine, and whether it fits: the one place that knows.

On a Mac the GPU itself is asked, in a process of its own, since asking takes MLX. The table is for Macs that are not
this one, and for one that does not answer. It was tested with stand-in numbers only and has not been run on Metal.
"""

from __future__ import annotations

import json
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import psutil

_MIB = 2**20
_GIB = 2**30
# Beside the weights, before anything can be answered: MLX and its kernels, a chunk of a prompt, a short KV cache.
# An amount and no factor: it does not grow with the weights.
HEADROOM = 512 * 10**6
# Up to so many GiB of memory, Metal recommends this part of it for all that the GPU uses. Public reports, the smallest
# where systems differ; 96 and 192 GiB are older ones.
_TABLE = ((32, 2 / 3), (96, 0.75), (128, 0.84), (192, 0.75), (256, 0.87), (512, 0.9))
_ASKING_S = 30

# What the GPU says of itself; empty where there is none, or no answer.
Ask = Callable[[], dict[str, Any]]


def fits(weights: int, memory: int, headroom: int = HEADROOM) -> bool:
    """Whether a model with so many bytes of weights can be served in `memory`."""
    return weights + headroom <= memory


def metal_limit(memory: int, wired_limit_mb: int = 0) -> int:
    """Bytes of `memory` that the GPU of a Mac may use: what the user has set, else what the table says."""
    if wired_limit_mb > 0:
        return wired_limit_mb * _MIB
    row = bisect_left([size for size, _ in _TABLE], memory / _GIB)
    return int(memory * _TABLE[min(row, len(_TABLE) - 1)][1])


def ask_device() -> dict[str, Any]:
    """What MLX says of the GPU, from a process of its own."""
    command = [sys.executable, "-P", "-m", "quantize.device_info"]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=_ASKING_S, check=False).stdout
        said = json.loads(answer)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}
    return said if isinstance(said, dict) else {}


def mac_memory(memory: int, ask: Ask = ask_device, wired_limit_mb: Callable[[], int] | None = None) -> int:
    """Bytes that a model may take on this Mac of `memory`, regardless of what else is running."""
    recommended = ask().get("max_recommended_working_set_size")
    if isinstance(recommended, int) and recommended > 0:
        return recommended
    return metal_limit(memory, (wired_limit_mb or read_wired_limit_mb)())


def model_memory() -> int:
    """Bytes that a model may take on this machine, regardless of what else is running."""
    memory = int(psutil.virtual_memory().total)
    return mac_memory(memory) if sys.platform == "darwin" else memory


def available_memory() -> int:
    """Bytes that a model may take now: on a Mac the GPU's share, elsewhere what is free."""
    return model_memory() if sys.platform == "darwin" else int(psutil.virtual_memory().available)


def read_wired_limit_mb() -> int:
    """What the user lets the GPU of this Mac have; 0, macOS's own value for "not set", elsewhere too."""
    return sysctl_number("iogpu.wired_limit_mb")


def sysctl_number(name: str) -> int:
    """0 where there is no such name."""
    if sys.platform != "darwin":
        return 0
    command = ["/usr/sbin/sysctl", "-n", name]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    return int(answer) if answer.isdigit() else 0
