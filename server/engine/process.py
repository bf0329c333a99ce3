"""The engine process: `python -m server.engine ADDRESS`, one resident model, one loop.

The loop is three verbs: receive commands, step the engine, send events. The process ends on `Stop`, and when
its parent is gone, so that no orphan keeps gigabytes of unified memory. Whatever can kill a process (a Metal abort, the
out-of-memory killer, a hang) ends this one only.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import mlx_lm
import zmq
from mlx_lm.models.cache import make_prompt_cache

from quantize.worker import exit_with_parent
from server.engine import kv
from server.engine.admission import Admission
from server.engine.cost_model import measure
from server.engine.device.device import Device
from server.engine.device.failures import explain
from server.engine.device.pressure import is_watched, pressure
from server.engine.engine import Engine
from server.engine.loading import LoadError, load
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.prefixes.fingerprint import fingerprint
from server.engine.rehearsal import rehearse
from server.engine.warm_up import warm_up
from server.engine_client.protocol import (
    LOST,
    Cancel,
    EngineEvent,
    Failed,
    Generate,
    Load,
    Loaded,
    Loading,
    ScoreOptions,
    TokenTable,
    decode_command,
    encode,
)

log = logging.getLogger("configi.engine")

_STATS_INTERVAL_S = 1.0
# Idle for this long, the engine gives back what was freed and is kept for reuse; for this long more, it writes prefixes
# to disk: agents pause as long as their tools run.
_BEFORE_GIVING_BACK_MS = 5_000
_BEFORE_WRITING_MS = 15_000
# While a thread writes, this long between two looks at it.
_WHILE_WRITING_MS = 50
# When idle, a request waits this long for another, and this long for one that is known to be on its way: prompts that
# arrive together are read together.
_BATCHING_WINDOW_MS = 1
_FOLLOWED_WINDOW_MS = 20
# How often it looks, while nothing happens, whether the machine is short of memory.
_LOOK_MS = 5000
# After `Stop` it may go on writing for this long; the supervisor waits longer.
_LAST_WRITES_S = 3.0


def serve(socket: zmq.Socket[bytes]) -> int:
    """Load the model that the first command names, then work until `Stop`; returns the exit status."""
    options = decode_command(socket.recv())
    if not isinstance(options, Load):
        raise RuntimeError(f"the first command must be Load, not {options!r}")
    try:
        engine, loaded = _load(options, partial(_show, socket))
    except LoadError as error:
        if (cause := error.__cause__) is not None:
            # The sentence for users is cut, and names no paths.
            log.error("the model cannot be loaded: %s: %s", type(cause).__name__, cause)
        socket.send(encode([Failed(None, "load", str(error))]))
        return 0
    except Exception as error:
        failure = explain(error)
        if failure.lost or failure.kind != "memory":
            raise
        socket.send(encode([Failed(None, "memory", "There is not enough memory to load the model.")]))
        return 0
    socket.send(encode([loaded]))
    _loop(socket, engine)
    if engine.lost is not None:
        socket.send(encode([engine.lost]))
        return LOST
    engine.close(_LAST_WRITES_S)
    return 0


def _show(socket: zmq.Socket[bytes], done: int, total: int) -> None:
    socket.send(encode([Loading(done, total)]))


def _load(options: Load, on_progress: Callable[[int, int], None]) -> tuple[Engine, Loaded]:
    """Raises LoadError for a model that cannot be loaded or cannot answer."""
    start = time.monotonic()
    folder = Path(options.model_dir)
    device = Device()
    limit = device.memory_limit(options.memory_limit)
    model, vocab_size, weight_bytes = load(folder, on_progress)
    device.prepare(limit, weight_bytes)
    device.wire()
    together = rehearse(model, vocab_size)
    if not together.decode:
        log.warning("mlx-lm cannot batch this architecture: each request has forward passes of its own")
    warm_up(model, vocab_size, together, device)
    disk_dir = Path(options.disk_dir) if options.disk_dir else None
    if not kv.is_storable(make_prompt_cache(model)):
        log.warning("mlx-lm cannot read this architecture's caches from files: no prefix is kept on disk")
        disk_dir = None
    disk = DiskTier(disk_dir, fingerprint(folder, mlx_lm.__version__), options.disk_limit, options.disk_hourly_limit)
    admission = Admission(limit, weight_bytes, measure(model))
    engine = Engine(model, vocab_size, options, admission, disk, together, device)
    # What has failed until here is reported now, rather than to the first request.
    device.wait()
    return engine, Loaded(
        seconds=time.monotonic() - start,
        batched=together.decode,
        most_tokens=admission.most_tokens,
    )


def _loop(socket: zmq.Socket[bytes], engine: Engine) -> None:
    """Until `Stop`, or until the engine is lost."""
    next_stats, next_look = 0.0, 0.0
    idle_work = chores(engine)
    until_chore = next(idle_work, None)
    while engine.lost is None:
        idle = not engine.busy
        received = receive(socket, engine, until_chore if until_chore is not None or not is_watched() else _LOOK_MS)
        if received is None:
            return
        count, events = received
        if time.monotonic() >= next_look:
            engine.yield_to(pressure())
            next_look = time.monotonic() + _LOOK_MS / 1000
        if idle and not count:
            until_chore = next(idle_work, None)
            continue
        idle_work = chores(engine)
        until_chore = next(idle_work, None)
        if engine.busy:
            events += engine.step()
        # Also after the last step, so that the gauges read zero while idle.
        if time.monotonic() >= next_stats or not engine.busy:
            events.append(engine.stats())
            next_stats = time.monotonic() + _STATS_INTERVAL_S
        socket.send(encode(events))


def receive(socket: zmq.Socket[bytes], engine: Engine, wait_ms: int | None) -> tuple[int, list[EngineEvent]] | None:
    """What has arrived, and while the engine is idle what arrives within `wait_ms` and together with that: how many
    commands, and what the engine says to them. None when it is to end."""
    idle, count, events = not engine.busy, 0, list[EngineEvent]()
    wait = wait_ms if idle else 0
    while socket.poll(wait):
        command = decode_command(socket.recv())
        if not isinstance(command, TokenTable | Generate | ScoreOptions | Cancel):
            return None
        count += 1
        events += engine.handle(command)
        wait = _batching_window(command) if idle else 0
    return count, events


def _batching_window(command: TokenTable | Generate | ScoreOptions | Cancel) -> int:
    followed = isinstance(command, Generate | ScoreOptions) and command.followed_by
    return _FOLLOWED_WINDOW_MS if followed else _BATCHING_WINDOW_MS


def chores(engine: Engine) -> Iterator[int]:
    """What is done while nothing comes: gives the milliseconds to wait for a command before the next of it. After the
    last there is no work, and no wake-up."""
    yield _BEFORE_GIVING_BACK_MS
    engine.give_back()
    yield _BEFORE_WRITING_MS
    while engine.write_one():
        yield _WHILE_WRITING_MS
    engine.give_back()


def main() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    exit_with_parent(sys.stdin.buffer)
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    socket.connect(sys.argv[1])
    status = serve(socket)
    # The default linger delivers the last events before the context closes.
    context.destroy(linger=2000)
    # All memory goes back with the process: the collector need not look through it first.
    gc.freeze()
    sys.exit(status)
