"""Virtual time in place of the `time` module of everything below `server.engine`, and its threads without time."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any


class Clock:
    """Stands in for the module `time`; only who simulates moves it. `in_background`: what runs would be in a thread,
    which the engine's loop does not wait for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.in_background = False

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
    """The engine's modules see this clock, and their threads do at once what they are given; other packages do not.

    Each module of the engine names the module `time`, and those with a thread the class of its pool, so the names are
    the seam: no parameter has to reach every place that measures.
    """
    clock = Clock()
    stand_ins = {"time": (time, clock), "ThreadPoolExecutor": (ThreadPoolExecutor, lambda *_: _AtOnce(clock))}
    replaced: list[tuple[dict[str, Any], str]] = []
    for module in [module for name, module in sys.modules.items() if name.startswith("server.engine.")]:
        for name, (real, stand_in) in stand_ins.items():
            if vars(module).get(name) is real:
                vars(module)[name] = stand_in
                replaced.append((vars(module), name))
    try:
        yield clock
    finally:
        for names, name in replaced:
            names[name] = stand_ins[name][0]


class _AtOnce(Executor):
    """A real thread would be done at some moment that has nothing to do with the virtual clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def submit(self, work: Callable[..., Any], /, *args: Any, **others: Any) -> Future[Any]:
        done: Future[Any] = Future()
        self._clock.in_background = True
        try:
            done.set_result(work(*args, **others))
        except Exception as error:
            done.set_exception(error)
        finally:
            self._clock.in_background = False
        return done
