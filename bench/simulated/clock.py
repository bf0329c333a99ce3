"""Virtual time, in place of the `time` module of everything below `server.engine`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator


class Clock:
    """Stands in for the module `time`; only who simulates moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def time(self) -> float:
        return 1e9 + self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait_until(self, instant: float) -> None:
        self.now = max(self.now, instant)


@contextlib.contextmanager
def virtual_time() -> Iterator[Clock]:
    """The engine's modules see this clock; those of other packages, and waits for threads, keep the real one.

    Each module of the engine names the module `time`, so the name is the seam: no parameter has to reach every place
    that measures.
    """
    clock = Clock()
    inside = [module for name, module in sys.modules.items() if name.startswith("server.engine.")]
    replaced = [module for module in inside if vars(module).get("time") is time]
    for module in replaced:
        vars(module)["time"] = clock
    try:
        yield clock
    finally:
        for module in replaced:
            vars(module)["time"] = time
