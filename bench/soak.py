"""The long run: `python -m bench.soak [--minutes 5] [--model tiny|smollm2]`. Exit code 1 when a promise is broken.

Rounds of mixed traffic (short and long prompts, streams or not, bad requests, clients that leave in the queue, in
prefill, in decode), each followed by 200 clients that leave after 0.5 s and one request that must be answered. In the
first half one engine lives through it all; in the second each round also kills the engine with SIGKILL and lets the
model be unloaded for idleness. After each round, with nothing asked, the processes are sampled.

Held: every request ends in an answer or an error; errors of the engine come only where it was killed; memory, open
files and threads of both processes are flat (flatness.py says how that is judged); the server ends in order.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench import servers
from bench.flatness import FEWEST, Growth, Sample, growths, sample
from bench.models import cache_folder, smollm2
from bench.result import RESULTS, Curve, Figure, Result, Target, lines, write
from bench.setup import setup
from bench.traffic import OUTCOMES, Outcome, Tally, Traffic
from tests.support.tiny_model import write_tiny_model

_CLIENTS = 16
_ROUND_S = 5.0
_LEAVERS, _LEAVE_S = 200, 0.5
_IDLE_UNLOAD_S = 4.0
_ANSWER_S = 30.0
# Longer than a cancel takes, shorter than the idle unload.
_QUIET_S = 1.0
_SETTINGS: dict[str, dict[str, Any]] = {
    "lifecycle": {"idle_unload_s": _IDLE_UNLOAD_S, "load_at_start": True},
    # All who leave are to leave the queue, not to be turned away from it.
    "engine": {"restart_backoff_s": 0.2, "queue_limit": 2 * _LEAVERS},
    # Full within the first seconds: what grows after that is a leak.
    "cache": {"memory_limit": "16MB", "disk_limit": "64MB"},
}
_NONE_ALLOWED = Target(0, absolute=True)


@dataclass(slots=True)
class Log:
    """What the run saw. `engine` holds samples of the one engine of the first half."""

    tally: Tally = field(default_factory=Tally)
    http: list[Sample] = field(default_factory=list)
    engine: list[Sample] = field(default_factory=list)
    unloaded: list[Sample] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class Stuck(Exception):
    """The server answers no more: there is nothing left to measure."""


class Soak:
    def __init__(self, server: servers.Server, model: Path, minutes: float) -> None:
        self.log = Log()
        self._server = server
        self._seconds = minutes * 60
        self._start = time.monotonic()
        self._process = psutil.Process(server.process.pid)
        self._draw = random.Random(0)
        self._traffic = Traffic(server.url, model, self.log.tally)

    async def run(self) -> None:
        try:
            await self._halves()
        except Stuck as error:
            self.log.broken.append(str(error))

    async def _halves(self) -> None:
        await self._steady(self._start + self._seconds / 2)
        if failed := self.log.tally.outcomes["failed"]:
            self.log.broken.append(f"{failed} requests were ended by an error of the engine, which nobody had killed")
        await self._rough(self._start + self._seconds)

    async def _steady(self, end: float) -> None:
        """One engine for all."""
        pids = set()
        while time.monotonic() < end or len(self.log.http) < FEWEST:
            await self._round()
            await asyncio.sleep(_QUIET_S)
            self.log.http.append(self._sample(self._process))
            for engine in self._server.engines():
                pids.add(engine.pid)
                self.log.engine.append(self._sample(engine))
        if len(pids) != 1:
            self.log.broken.append(f"the engine did not live through the first half: {len(pids)} processes were seen")

    async def _rough(self, end: float) -> None:
        """The engine is killed, and the model unloaded, in each round."""
        while time.monotonic() < end or len(self.log.unloaded) < FEWEST:
            killer = asyncio.create_task(self._kill_engine())
            await self._round()
            await killer
            if not await self._engines_are_gone(_IDLE_UNLOAD_S + 10):
                self.log.broken.append("the idle model was not unloaded")
            self.log.unloaded.append(self._sample(self._process))

    async def _round(self) -> None:
        await self._traffic.mixed(_CLIENTS, _ROUND_S)
        await self._traffic.leavers(_LEAVERS, _LEAVE_S)
        wait = await self._traffic.until_answered(_ANSWER_S)
        if wait is None:
            raise Stuck(f"after {_LEAVERS} clients had left, a request had no answer in {_ANSWER_S:.0f} s")
        self.log.waits.append(wait)
        print(f"{time.monotonic() - self._start:6.0f} s  {dict(self.log.tally.outcomes)}", file=sys.stderr, flush=True)

    async def _kill_engine(self) -> None:
        """At any moment: also while it starts, and loads the model."""
        await asyncio.sleep(self._draw.uniform(0.0, _ROUND_S))
        for engine in self._server.engines():
            engine.kill()

    async def _engines_are_gone(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self._server.engines():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.2)
        return True

    def _sample(self, process: psutil.Process) -> Sample:
        return sample(process, time.monotonic() - self._start)


def result(log: Log, model: str, minutes: float) -> Result:
    never: tuple[Outcome, ...] = ("lost", "wrong")
    counts = [
        Figure(text, "", None, log.tally.outcomes[name], _NONE_ALLOWED if name in never else None)
        for name, text in OUTCOMES.items()
    ]
    longest = f"{_LEAVERS} clients left after {_LEAVE_S:g} s: the next answer, at worst"
    counts.append(Figure(longest, "s", None, max(log.waits, default=_ANSWER_S), Target(10, absolute=True)))
    held = [
        ("HTTP process", log.http),
        ("engine process", log.engine),
        ("HTTP, kills and unloads", log.unloaded),
    ]
    growing = [_figure(name, growth) for name, samples in held if len(samples) >= FEWEST for growth in growths(samples)]
    sides = {name: tuple((s.at, s.rss / 2**20) for s in samples) for name, samples in held}
    return Result(
        scenario="soak",
        title=f"Soak: {minutes:g} min of mixed traffic from {_CLIENTS} clients, {model} model",
        reference="before",
        setup=setup(),
        figures=(*counts, *growing),
        notes=(*log.broken, *(f"{count} x {what}" for what, count in log.tally.complaints.most_common(10))),
        curves=(Curve("soak", "Resident memory between rounds of traffic", "seconds", "MiB", sides),),
    )


def _figure(name: str, growth: Growth) -> Figure:
    bound = Target(round(growth.before + growth.allowed, 1), absolute=True)
    return Figure(f"{name}: {growth.what}", "", growth.before, growth.after, bound)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="configi-soak-") as name:
        folder = Path(name)
        model = smollm2(cache_folder()) if args.model == "smollm2" else write_tiny_model(folder / "model", context=4096)
        with servers.running("configi", model, folder, **_SETTINGS) as server:
            soak = Soak(server, model, args.minutes)
            asyncio.run(soak.run())
            process = server.process
        if process.returncode != 0:
            soak.log.broken.append(f"the server ended with code {process.returncode}")
        if said := server.log.read_text(errors="replace").count("Traceback"):
            soak.log.broken.append(f"the server's log holds {said} tracebacks")
    made = result(soak.log, args.model, args.minutes)
    write(made, args.output)
    print("\n".join(lines(made)))
    return 0 if made.met and not soak.log.broken else 1


if __name__ == "__main__":
    sys.exit(main())
