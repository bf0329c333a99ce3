"""The engine process: `python -m server.engine.process ADDRESS`, one resident model, one loop.

A turn of the loop is three verbs: receive commands, step the batch, send events. The process ends when told to stop,
and when its parent is gone, so that no orphan keeps gigabytes of unified memory. Whatever can kill a process (a Metal
abort, the out-of-memory killer, a hang) ends this one only.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from pathlib import Path

import mlx_lm
import zmq

from server.engine import device, kv
from server.engine.admission import Admission
from server.engine.disk_tier import DiskTier
from server.engine.engine import Engine
from server.engine.fingerprint import fingerprint
from server.engine.loading import LoadError, load
from server.engine_client.parent import exit_with_parent
from server.engine_client.protocol import (
    Cancel,
    EngineEvent,
    Failed,
    Generate,
    Load,
    Loaded,
    decode_command,
    encode,
)

_STATS_INTERVAL_S = 1.0
# Idle for this long, the engine writes prefixes to disk: agents pause as long as their tools run.
_IDLE_BEFORE_WRITING_MS = 1000
# Out of idleness, the first request waits so long for more: prompts that come together are read together.
_COMPANY_MS = 4
# Asked to stop, it still writes for so long; the supervisor waits longer.
_LAST_WRITES_S = 3.0


def serve(socket: zmq.Socket[bytes]) -> None:
    """Load the model that the first command names, then work until `Stop`."""
    options = decode_command(socket.recv())
    if not isinstance(options, Load):
        raise RuntimeError(f"the first command must be Load, not {options!r}")
    start = time.monotonic()
    limit = device.memory_limit(options.memory_limit)
    device.prepare(limit)
    try:
        model, vocab_size, weight_bytes = load(Path(options.model_dir))
    except LoadError as error:
        socket.send(encode([Failed(None, "load", str(error), traceback.format_exc())]))
        return
    except MemoryError:
        socket.send(encode([Failed(None, "memory", "There is not enough memory to load the model.")]))
        return
    admission = Admission(limit, weight_bytes, kv.measure(model))
    disk = DiskTier(
        Path(options.disk_dir) if options.disk_dir else None,
        fingerprint(Path(options.model_dir), mlx_lm.__version__),
        options.disk_limit,
    )
    engine = Engine(model, vocab_size, options, admission, disk)
    seconds = time.monotonic() - start
    socket.send(encode([Loaded(vocab_size=vocab_size, weight_bytes=weight_bytes, seconds=seconds)]))
    _loop(socket, engine)
    deadline = time.monotonic() + _LAST_WRITES_S
    while time.monotonic() < deadline and engine.write_one():
        pass


def _loop(socket: zmq.Socket[bytes], engine: Engine) -> None:
    next_stats = 0.0
    # Milliseconds to wait for a command before the next write; None with all written: no work, no wake-ups.
    patience: int | None = _IDLE_BEFORE_WRITING_MS
    while True:
        events: list[EngineEvent] = []
        idle = not engine.busy
        wait = patience if idle else 0
        company = _COMPANY_MS if idle else 0
        while socket.poll(wait):
            idle, wait = False, company
            command = decode_command(socket.recv())
            if not isinstance(command, Generate | Cancel):
                return
            events += engine.handle(command)
        if idle:
            # One span at a time, with a look at the socket between them.
            patience = 0 if engine.write_one() else None
            continue
        patience = _IDLE_BEFORE_WRITING_MS
        if engine.busy:
            events += engine.step()
        # Also after the last step, so that the gauges read zero while idle.
        if time.monotonic() >= next_stats or not engine.busy:
            events.append(engine.stats())
            next_stats = time.monotonic() + _STATS_INTERVAL_S
        socket.send(encode(events))


def main() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    exit_with_parent(sys.stdin.buffer)
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    socket.connect(sys.argv[1])
    serve(socket)
    # The default linger delivers the last events before the context closes.
    context.destroy(linger=2000)


if __name__ == "__main__":
    main()
