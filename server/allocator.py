"""Memory that is freed goes back to the system: told to the C library, which by itself keeps what it once had.

Any process. Where the library is another one (musl), nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

# glibc, malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# Larger blocks are mapped one by one and leave when they are freed. asyncio's buffers of 256 KiB stay below it, since
# they come and go with every read.
_MAPPED_BYTES = 2**20
_KEPT_BYTES = 4 * 2**20
_ARENAS = 2


def keep_little() -> None:
    """To be called before other threads start. macOS maps large blocks one by one as it is."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """What is free at this moment. Milliseconds, in which other threads have the interpreter."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        if sys.platform == "darwin":
            library.malloc_zone_pressure_relief(ctypes.c_void_p(None), ctypes.c_size_t(0))
        else:
            library.malloc_trim(ctypes.c_size_t(0))
