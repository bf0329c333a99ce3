"""How short of memory the whole machine is, as macOS says; never short elsewhere. Engine process; not run on a Mac."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from enum import IntEnum


class Pressure(IntEnum):
    """The values of `kern.memorystatus_vm_pressure_level`."""

    NORMAL = 1
    WARNING = 2
    CRITICAL = 4


# Of the memory that prefixes may have, what they may keep.
SHARE = {Pressure.NORMAL: 1.0, Pressure.WARNING: 0.25, Pressure.CRITICAL: 0.0}


def pressure(read: Callable[[], int | None] | None = None) -> Pressure:
    """A level that nobody knows is none."""
    level = (read or _read)()
    return Pressure(level) if level in set(Pressure) else Pressure.NORMAL


def is_watched() -> bool:
    """Whether it is worth looking while nothing else happens."""
    return sys.platform == "darwin"


def _read() -> int | None:
    if sys.platform != "darwin":
        return None
    level, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    libc = ctypes.CDLL(None)
    name = b"kern.memorystatus_vm_pressure_level"
    failed = libc.sysctlbyname(name, ctypes.byref(level), ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else level.value
