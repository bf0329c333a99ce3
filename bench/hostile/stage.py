"""A server with innocent and hostile models, its meters, and what its processes hold. It may have to be killed."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from bench.hostile.attack import come_last
from bench.hostile.meters import Meter, Seen
from bench.servers import ServerFailed, configuration
from bench.setup import ROOT, environment
from server.settings.types import LimitSettings

Kind = Literal["HTTP process", "engine", "text processes", "body process", "workers"]
KINDS: tuple[Kind, ...] = ("HTTP process", "engine", "text processes", "body process", "workers")
_ADDRESS = re.compile(r"on http://\S+:(\d+)")
_START_S, _STOP_S, _LOOK_S = 30.0, 15.0, 0.05
_SETTINGS: dict[str, dict[str, Any]] = {
    # A stall that is taken for a hung engine shows as streams that end.
    "engine": {"hang_timeout_s": 5, "restart_backoff_s": 0.2},
    "lifecycle": {"load_at_start": True, "failed_retry_s": 0, "load_wait_s": 5},
    "cache": {"memory_limit": "16MB", "disk_limit": 0},
    "log": {"level": "error"},
}
# A server that takes more is ended, before the system has to choose whom to end.
_MOST_BYTES = 5 * 10**9
# So that hundreds of endless templates end in minutes.
_TEXT_TIMEOUT_S = 1


def _limits() -> dict[str, Any]:
    return {"text_timeout_s": _TEXT_TIMEOUT_S} if "text_timeout_s" in LimitSettings.model_fields else {}


@dataclass(slots=True)
class Memory:
    """Resident bytes by kind of process, all of a kind together, but for text processes: the largest one."""

    worst: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    now: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))


@dataclass(frozen=True, slots=True)
class Watched:
    """What the meters of one row saw from `start` to `end`."""

    streams: tuple[Seen, ...]
    health: Seen
    start: float
    end: float

    @property
    def token_s(self) -> tuple[float, ...]:
        return tuple(seen.longest(self.start, self.end) for seen in self.streams)

    @property
    def health_s(self) -> float:
        return self.health.longest(self.start, self.end)

    @property
    def ended(self) -> tuple[str, ...]:
        """Why innocent streams ended."""
        return tuple(seen.ended for seen in self.streams if seen.ended)


class Stage:
    """One configuration of models. The server is started by `up`, and again after `kill`."""

    def __init__(
        self, folder: Path, innocent: Path, hostile: Mapping[str, Mapping[str, str]], hub: Mapping[str, str]
    ) -> None:
        folder.mkdir()
        self._folder = folder
        self._config = configuration(folder, innocent, {**_SETTINGS, "limits": _limits(), **_offline(hub)})
        lines = [
            f"[[models]]\nid = {json.dumps(name)}\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items())
            for name, keys in hostile.items()
        ]
        self._config.write_text(self._config.read_text() + "".join(lines))
        self._environment = {**environment(), **hub}
        self._process: subprocess.Popen[str] | None = None
        self._known: dict[int, psutil.Process] = {}
        self.memory = Memory()
        self.port = 0

    # ---- its life

    def up(self) -> None:
        """Start the server if it does not run, with the innocent model in memory."""
        if self._process is not None and self._process.poll() is None:
            return
        with (self._folder / "server.log").open("a") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server.cli", "serve", "--config", str(self._config)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT,
                # As a service has one: where Linux shares out the processors to sessions, those who send hostile
                # requests would use up the server's.
                env=self._environment, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdout is not None
        if not (found := _ADDRESS.search(self._process.stdout.readline())):
            raise ServerFailed("configi did not start; see server.log.")
        self.port = int(found[1])
        end = time.monotonic() + _START_S
        while self.answer_s(5) is None:
            if time.monotonic() > end:
                raise ServerFailed("configi does not answer after its start.")

    def answers(self, limit_s: float) -> bool:
        """Whether /health answers within so long."""
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=limit_s).close()
            return True
        return False

    def answer_s(self, limit_s: float) -> float | None:
        """Seconds that one more small innocent request takes; None when it is not answered."""
        body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}).encode()
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        start = time.monotonic()
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request, timeout=limit_s).close()
            return time.monotonic() - start
        return None

    def kill(self) -> None:
        """With all that it started."""
        if self._process is None:
            return
        self._kill_family()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._known.clear()

    def _kill_family(self) -> None:
        assert self._process is not None
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.kill()

    def end(self) -> list[str]:
        """What is wrong with how it ends at SIGTERM."""
        if self._process is None or self._process.poll() is not None:
            return []
        family = self._family()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return [f"SIGTERM did not end it within {_STOP_S:.0f} s"]
        _, alive = psutil.wait_procs(family, timeout=3)
        for process in alive:
            process.kill()
        return [f"exit code {code}"] * bool(code) + [f"{len(alive)} processes left"] * bool(alive)

    # ---- what it takes

    def own_s(self) -> float:
        """Processor seconds of this harness and all that it has started, the ended ones among them."""
        seconds = 0.0
        with contextlib.suppress(psutil.Error):
            this = psutil.Process()
            for process in (this, *this.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    seconds += sum(process.cpu_times()[:4])
        return seconds

    # ---- what it holds

    def _family(self) -> list[psutil.Process]:
        assert self._process is not None
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                self._known.setdefault(child.pid, child)
        return [child for child in self._known.values() if child.is_running()]

    def look(self) -> None:
        """Sample the memory of all its processes."""
        assert self._process is not None
        now: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        with contextlib.suppress(psutil.Error):
            now["HTTP process"] = psutil.Process(self._process.pid).memory_info().rss
        for child in self._family():
            with contextlib.suppress(psutil.Error):
                kind, rss = _kind(child), child.memory_info().rss
                now[kind] = max(now[kind], rss) if kind == "text processes" else now[kind] + rss
        self.memory.now = now
        self.memory.worst = {kind: max(self.memory.worst[kind], now[kind]) for kind in KINDS}
        if sum(now.values()) > _MOST_BYTES:
            self._kill_family()

    def workers(self) -> int:
        """Processes that are none of those that stay."""
        count = 0
        for child in self._family():
            with contextlib.suppress(psutil.Error):
                count += child.status() != psutil.STATUS_ZOMBIE and _kind(child) == "workers"
        return count

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Memory is sampled meanwhile; `memory.worst` begins anew."""
        self.memory = Memory()
        done = threading.Event()

        def look() -> None:
            come_last()
            while not done.wait(_LOOK_S):
                self.look()

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


class Others:
    """How much of the machine others take: from its beginning, in processors."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._start, self._busy, self._own = time.monotonic(), _busy_s(), stage.own_s()

    def share(self) -> float:
        seconds = time.monotonic() - self._start
        return max(0.0, (_busy_s() - self._busy) - (self._stage.own_s() - self._own)) / seconds


def _busy_s() -> float:
    """Processor seconds of the whole machine, those included that its host has taken."""
    times = psutil.cpu_times()
    # Linux counts guests among the users, and has both idle times.
    return float(sum(times) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0)
                 - getattr(times, "guest_nice", 0))  # fmt: skip


class Metered:
    """Two streams and a prober of /health, running when the block begins."""

    def __init__(self, port: int) -> None:
        self._port = port

    def __enter__(self) -> Metered:
        self._folder = tempfile.TemporaryDirectory(prefix="configi-meters-")
        logs = Path(self._folder.name)
        self._streams = [Meter("stream", self._port, logs / f"stream{n}") for n in range(2)]
        self._health = Meter("health", self._port, logs / "health")
        end = time.monotonic() + 10
        while not all(len(meter.seen().beats) > 5 for meter in (*self._streams, self._health)):
            if time.monotonic() > end:
                self.__exit__()
                raise ServerFailed("the innocent streams did not begin.")
            time.sleep(0.02)
        self._start = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        for meter in (*self._streams, self._health):
            meter.stop()
        self._folder.cleanup()

    def look(self) -> Watched:
        """From the beginning until now."""
        streams = tuple(meter.seen() for meter in self._streams)
        return Watched(streams, self._health.seen(), self._start, time.monotonic())


def _kind(process: psutil.Process) -> Kind:
    command = " ".join(process.cmdline())
    if "server.engine" in command:
        return "engine"
    if "server.http.parse_process" in command:
        return "body process"
    return "text processes" if "server.text" in command else "workers"


def _offline(hub: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    return {"storage": {"allow_download": True}} if hub else {}
