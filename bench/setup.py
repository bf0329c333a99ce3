"""What a figure was measured on: machine, versions, BLAS, and the environment that both servers get."""

from __future__ import annotations

import ctypes.util
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_OPENBLAS = "libopenblas.so.0"


@dataclass(frozen=True, slots=True)
class Setup:
    date: str
    machine: str
    cores: int
    python: str
    mlx: str
    mlx_lm: str
    configi: str
    blas: str

    def line(self) -> str:
        return (
            f"{self.date}, {self.cores} cores, {self.machine}, Python {self.python}, mlx {self.mlx}, "
            f"mlx-lm {self.mlx_lm}, configi {self.configi}, {self.blas}"
        )


def setup() -> Setup:
    return Setup(
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        machine=f"{_cpu()}, {platform.system()}",
        cores=cores(),
        python=platform.python_version(),
        mlx=version("mlx"),
        mlx_lm=version("mlx-lm"),
        configi=f"{version('configi-mlx')}{_commit()}",
        blas=_OPENBLAS if openblas() else "BLAS as MLX links it",
    )


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, str]:
    """For every measured process alike. MLX's CPU wheel for Linux links the reference BLAS; Debian's OpenBLAS
    (libopenblas0-pthread) put before it makes float32 prefill some twenty times faster. The bench's own variables are
    not theirs: configi refuses those that it does not know."""
    threads = os.environ.get("OPENBLAS_NUM_THREADS") or str(cores())
    names = {"OPENBLAS_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    others = {name: value for name, value in os.environ.items() if not name.startswith("CONFIGI_BENCH_")}
    return {**others, **names, **({"LD_PRELOAD": _OPENBLAS} if openblas() else {})}


def openblas() -> bool:
    return sys.platform == "linux" and ctypes.util.find_library("openblas") == _OPENBLAS


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit, with a + when the code that is measured differs from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return ""
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "server"], check=False).returncode
    return f" ({head.stdout.strip()}{'+' if changed else ''})"
