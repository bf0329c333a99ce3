"""The long run: `python -m bench.soak [--minutes 30] [--model gemma]`. Exit code 1 when a promise is broken.

Rounds of mixed traffic (short and long prompts, streams or not, bad requests, clients that leave in the queue, in
prefill, in decode), each followed by 200 clients that leave after 0.5 s and one request that must be answered. In one
round of five the machine is short of memory for a while (squeezed.py). The first half is one server at its default
settings, whose one engine lives through it all, and pauses long enough to write prefixes to disk. In the second each
round also kills the engine with SIGKILL and lets the model be unloaded for idleness, and the disk of the prefixes is
full. After each round, with nothing asked, the processes are sampled.

Held: every request ends in an answer or an error; errors of the engine come only where it was killed; memory, open
files and threads of all processes are flat (flatness.py says how that is judged): what the engine keeps in prefixes is
given up whenever memory is short, and so has a bound as well; both servers end in order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from bench import servers, squeezed
from bench.flatness import FEWEST, Growth, Sample, growths, sample
from bench.models import cache_folder, smollm2
from bench.result import RESULTS, Curve, Figure, Result, Target, lines, write
from bench.setup import setup
from bench.traffic import OUTCOMES, Outcome, Tally, Traffic
from server.engine.device.pressure import Pressure
from tests.support.sliding_model import write_sliding_model
from tests.support.tiny_model import write_tiny_model

_CLIENTS = 16
_ROUND_S = 5.0
_LEAVERS, _LEAVE_S = 200, 0.5
_IDLE_UNLOAD_S = 4.0
_ANSWER_S = 60.0
# Longer than an idle engine takes to give back what it kept for reuse (server/engine/process.py): that comes and goes
# with every round, and is bounded.
_QUIET_S = 7.0
# One round in so many is short of memory, from some moment on until its traffic ends.
_SQUEEZED = 5
# Half-way between two of these the first half pauses, until all prefixes are on disk.
_IDLE_S = 30.0
# Of the second half. All who leave are to leave the queue, not to be turned away from it.
_ROUGH: dict[str, dict[str, Any]] = {
    "lifecycle": {"idle_unload_s": _IDLE_UNLOAD_S},
    "engine": {"restart_backoff_s": 0.2, "queue_limit": 2 * _LEAVERS},
}
_FULL_DISK = "24m"
_TEXT = "server.text.process"
# One more text process starts under load and ends after it; so many pipes lead to each.
_PIPES = 3
# It ends five seconds after the weights have left memory.
_TEXT_ENDS_S, _REAPED_S = 15.0, 0.5
# What the log says, and that it must have been said.
_FULL = "are not kept on disk"
_SAID = {"short of memory": "times prefixes were given up to pressure", _FULL: "times the disk was full"}
_NONE_ALLOWED, _SOME_WANTED = Target(0, absolute=True), Target(1, at_least=True, absolute=True)


@dataclass(slots=True)
class Log:
    """What the run saw: samples by what was sampled, and `said`: how often the servers' logs said it."""

    tally: Tally = field(default_factory=Tally)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    said: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SAID, 0))

    def sampled(self, name: str, sample: Sample) -> int:
        """How many there are of the kind."""
        self.samples.setdefault(name, []).append(sample)
        return len(self.samples[name])


class Stuck(Exception):
    """The server answers no more: there is nothing left to measure."""


class Soak:
    """One half, on one server. `level`: the file that says how short of memory the machine is."""

    def __init__(self, server: servers.Server, model: Path, level: Path, log: Log, start: float) -> None:
        self._server = server
        self._level = level
        self._log = log
        self._start = start
        self._process = psutil.Process(server.process.pid)
        self._draw = random.Random(0)
        self._short = [Pressure.CRITICAL]
        self._rounds = 0
        self._traffic = Traffic(server.url, model, log.tally)

    async def steady(self, end: float) -> None:
        """One engine for all."""
        pids, rounds = set(), 0
        while time.monotonic() < end or rounds < FEWEST:
            await self._round()
            await asyncio.sleep(_IDLE_S if rounds % _SQUEEZED == _SQUEEZED // 2 else _QUIET_S)
            texts = [self._sample(process) for process in self._server.children(_TEXT)]
            http = self._sample(self._process)
            rounds = self._log.sampled("HTTP process", replace(http, files=http.files - _PIPES * len(texts)))
            self._log.sampled("text process", max(texts, key=lambda text: text.rss))
            for engine in self._server.engines():
                pids.add(engine.pid)
                self._log.sampled("engine process", self._sample(engine))
        if len(pids) != 1:
            self._log.broken.append(f"the engine did not live through the first half: {len(pids)} processes were seen")
        if failed := self._log.tally.outcomes["failed"]:
            self._log.broken.append(f"{failed} requests were ended by an error of the engine, which nobody had killed")

    async def rough(self, end: float) -> None:
        """The engine is killed, and the model unloaded, in each round."""
        self._short = [Pressure.WARNING, Pressure.CRITICAL]
        rounds = 0
        while time.monotonic() < end or rounds < FEWEST:
            killer = asyncio.create_task(self._kill_engine())
            await self._round()
            await killer
            if not await self._is_gone(self._server.engines, _IDLE_UNLOAD_S + 10):
                self._log.broken.append("the idle model was not unloaded")
            # Its text process follows; a process that ends has threads and pipes here.
            if not await self._is_gone(partial(self._server.children, _TEXT), _TEXT_ENDS_S):
                self._log.broken.append("the text process of an unloaded model did not end")
            await asyncio.sleep(_REAPED_S)
            rounds = self._log.sampled("HTTP, kills and unloads", self._sample(self._process))

    async def _round(self) -> None:
        self._rounds += 1
        squeezing = asyncio.create_task(self._squeeze() if self._rounds % _SQUEEZED == 0 else asyncio.sleep(0))
        await self._traffic.mixed(_CLIENTS, _ROUND_S)
        await self._traffic.leavers(_LEAVERS, _LEAVE_S)
        await squeezing
        say(self._level, Pressure.NORMAL)
        wait = await self._traffic.until_answered(_ANSWER_S)
        if wait is None:
            raise Stuck(f"after {_LEAVERS} clients had left, a request had no answer in {_ANSWER_S:.0f} s")
        self._log.waits.append(wait)
        spent = time.monotonic() - self._start
        print(f"{spent:6.0f} s  {dict(self._log.tally.outcomes)}", file=sys.stderr, flush=True)

    async def _squeeze(self) -> None:
        await asyncio.sleep(self._draw.uniform(0.0, _ROUND_S))
        say(self._level, self._draw.choice(self._short))

    async def _kill_engine(self) -> None:
        """At any moment: also while it starts, and loads the model."""
        await asyncio.sleep(self._draw.uniform(0.0, _ROUND_S))
        for engine in self._server.engines():
            engine.kill()

    async def _is_gone(self, living: Callable[[], list[psutil.Process]], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while living():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.2)
        return True

    def _sample(self, process: psutil.Process) -> Sample:
        return sample(process, time.monotonic() - self._start)


def say(level: Path, pressure: Pressure) -> None:
    """By a rename, so that nobody reads half of it."""
    new = level.with_suffix(".new")
    new.write_text(str(int(pressure)))
    new.replace(level)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """`folder` on a disk of its own that is soon full, where this user may mount one."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_FULL_DISK},mode=700", "tmpfs", str(folder)]
    mounted = sys.platform == "linux" and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def result(log: Log, model: str, minutes: float) -> Result:
    never: tuple[Outcome, ...] = ("lost", "wrong")
    counts = [
        Figure(text, "", None, log.tally.outcomes[name], _NONE_ALLOWED if name in never else None)
        for name, text in OUTCOMES.items()
    ]
    longest = f"{_LEAVERS} clients left after {_LEAVE_S:g} s: the next answer, at worst"
    counts.append(Figure(longest, "s", None, max(log.waits, default=_ANSWER_S), Target(10, absolute=True)))
    counts += [Figure(_SAID[words], "", None, times, _SOME_WANTED) for words, times in log.said.items()]
    held = {name: samples for name, samples in log.samples.items() if len(samples) >= FEWEST}
    growing = [_figure(name, growth) for name, samples in held.items() for growth in growths(samples)]
    sides = {name: tuple((s.at, s.rss / 2**20) for s in samples) for name, samples in held.items()}
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


def gemma(folder: Path) -> Path:
    """Random weights with the caches of Gemma 4 26B-A4B: 25 layers on a window, 5 that see everything."""
    layers = [*["sliding_attention"] * 5, "full_attention"] * 5
    caches: dict[str, Any] = {"num_hidden_layers": len(layers), "layer_types": layers, "sliding_window_pattern": 6}
    small: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    return write_sliding_model(folder, sliding_window=256, enable_moe_block=False, **caches, **small)


_MODELS: dict[str, Callable[[Path], Path]] = {
    "gemma": gemma,
    "tiny": partial(write_tiny_model, context=4096),
    "smollm2": lambda _: smollm2(cache_folder()),
}


def soaked(model: Path, folder: Path, minutes: float) -> Log:
    """Both halves, on a server each."""
    log, start = Log(), time.monotonic()
    level = folder / "level"
    say(level, Pressure.NORMAL)

    def half(name: str, live: Callable[[Soak], Any], **sections: dict[str, Any]) -> None:
        program = partial(squeezed.program, said=level)
        with servers.running("configi", model, folder / name, program, **sections) as server:
            try:
                asyncio.run(live(Soak(server, model, level, log, start)))
            except Stuck as error:
                log.broken.append(str(error))
        _ended(server, log)

    half("steady", lambda soak: soak.steady(start + minutes * 30))
    with small_disk(folder / "rough" / "cache") as small:
        if not small:
            log.said.pop(_FULL)
            log.broken.append("a small disk could not be mounted: the full disk is left out")
        half("rough", lambda soak: soak.rough(start + minutes * 60), **_ROUGH)
    return log


def _ended(server: servers.Server, log: Log) -> None:
    if server.process.returncode != 0:
        log.broken.append(f"the server ended with code {server.process.returncode}")
    written = server.log.read_text(errors="replace")
    if said := written.count("Traceback"):
        log.broken.append(f"the server's log holds {said} tracebacks")
    for words in log.said:
        log.said[words] += written.count(words)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--model", choices=tuple(_MODELS), default="gemma")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    parser.add_argument("--keep", type=Path, help="folder for the servers' logs and caches, removed without it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="configi-soak-") as name:
        folder = args.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        log = soaked(_MODELS[args.model](folder / "model"), folder, args.minutes)
    made = result(log, args.model, args.minutes)
    write(made, args.output)
    print("\n".join(lines(made)))
    return 0 if made.met and not log.broken else 1


if __name__ == "__main__":
    sys.exit(main())
