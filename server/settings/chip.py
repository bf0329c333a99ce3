"""Defaults that depend on the chip. The table is what others measured; on none of these chips was it measured here."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChipDefaults:
    """`command_buffer_ops` and `command_buffer_mb`: what MLX puts into one Metal command buffer; 0 is MLX's own."""

    max_concurrent: int = 8
    command_buffer_ops: int = 0
    command_buffer_mb: int = 0


# By generation. Up to M2 a row more costs nearly as much as the first. Up to M4 a step of a mixture of experts gains by
# few command buffers, each of which costs some 20 us (ml-explore/mlx#4521, lablup/mlxcel#360); an M5 gains nothing.
_ROOMY = {"command_buffer_ops": 1000, "command_buffer_mb": 400}
_BY_GENERATION = {
    1: ChipDefaults(4, **_ROOMY),
    2: ChipDefaults(4, **_ROOMY),
    3: ChipDefaults(8, **_ROOMY),
    4: ChipDefaults(8, **_ROOMY),
}


def defaults_of(brand: str) -> ChipDefaults:
    """Of a chip by the name that macOS gives it, such as "Apple M2 Pro"; "" is any other machine."""
    found = re.match(r"Apple M(\d+)\b", brand)
    return _BY_GENERATION.get(int(found[1]), ChipDefaults()) if found else ChipDefaults()


@functools.cache
def defaults_here() -> ChipDefaults:
    return defaults_of(_brand())


def metal_environment(ops: int, mb: int, environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with the limits of command buffers; those that it has already stay. MLX reads them when a process
    first uses Metal."""
    limits = {"MLX_MAX_OPS_PER_BUFFER": ops, "MLX_MAX_MB_PER_BUFFER": mb}
    return {name: str(limit) for name, limit in limits.items() if limit} | dict(environment)


def _brand() -> str:
    if sys.platform != "darwin":
        return ""
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
