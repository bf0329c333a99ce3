"""The engine process: `python -m server.engine.process ADDRESS`, one resident model, one loop.

A turn of the loop is three verbs: receive commands, step the batch, send events. The process ends when told to stop,
and when its parent is gone, so that no orphan keeps gigabytes of unified memory. Whatever can kill a process (a Metal
abort, the out-of-memory killer, a hang) ends this one only.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import zmq

from server.engine.batch import Batch
from server.engine.loading import LoadError, load
from server.engine.messages import (
    Cancel,
    Event,
    Failed,
    FailureKind,
    Finished,
    Generate,
    Load,
    Loaded,
    Stats,
    decode_command,
    encode,
)
from server.engine.scheduler import Scheduler

log = logging.getLogger("configi.engine")

STATS_INTERVAL_S = 1.0


class Engine:
    """One loaded model and the requests it works on."""

    def __init__(self, model: nn.Module, vocab_size: int, options: Load) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._options = options
        self._scheduler = Scheduler(options.max_concurrent)
        self._batch = self._new_batch()
        self._steps = 0

    @property
    def busy(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def handle(self, command: Generate | Cancel) -> list[Event]:
        if isinstance(command, Cancel):
            if self._scheduler.release(command.id):
                self._batch.remove(command.id)
            return []
        if fault := self._fault(command):
            return [Failed(command.id, "invalid", fault)]
        self._scheduler.add(command)
        return []

    def step(self) -> list[Event]:
        """Start what fits and advance everything by one step. A failure ends what ran, never the loop."""
        self._steps += 1
        events: list[Event] = []
        try:
            events += [self._batch.insert(request) for request in self._scheduler.admit()]
            events += self._batch.step()
        except Exception as error:
            events += self._fail_running(error)
        for event in events:
            if isinstance(event, Finished | Failed) and event.id is not None:
                self._scheduler.release(event.id)
        return events

    def stats(self) -> Stats:
        return Stats(
            steps=self._steps,
            running=len(self._scheduler.running),
            waiting=self._scheduler.waiting,
            kv_bytes=self._batch.kv_bytes,
            active_bytes=mx.get_active_memory(),
            peak_bytes=mx.get_peak_memory(),
        )

    def _new_batch(self) -> Batch:
        return Batch(
            self._model, slots=self._options.max_concurrent, prefill_step_tokens=self._options.prefill_step_tokens
        )

    def _fault(self, request: Generate) -> str | None:
        """What is wrong with `request`, if anything: an index outside the vocabulary is undefined in MLX."""
        ids = {"prompt": request.prompt, "logit_bias": request.sampling.logit_bias}
        for field, tokens in ids.items():
            for token in tokens:
                if not 0 <= token < self._vocab_size:
                    return f"{field} names token {token}, but the vocabulary has {self._vocab_size} tokens."
        return None

    def _fail_running(self, error: Exception) -> list[Event]:
        """Every running request shares the failed batch, so each gets the error; a new batch takes the next ones."""
        kind, message = _explain(error)
        log.error("step failed: %s", message, exc_info=error)
        running = self._scheduler.running
        self._batch.close()
        # The traceback holds the failed batch's caches alive; let go of both before the next step allocates.
        detail = "".join(traceback.format_exception(error))
        error.__traceback__ = None
        self._batch = self._new_batch()
        mx.clear_cache()
        return [Failed(id, kind, message, detail) for id in sorted(running)]


def _explain(error: Exception) -> tuple[FailureKind, str]:
    if isinstance(error, MemoryError) or any(w in str(error) for w in ("[malloc]", "allocate", "out of memory")):
        return "memory", "The engine ran out of memory; try a shorter prompt or fewer requests at once."
    return "internal", "The engine failed on this request; the next one will be served."


def serve(socket: zmq.Socket[bytes]) -> None:
    """Load the model that the first command names, then work until `Stop`."""
    options = decode_command(socket.recv())
    if not isinstance(options, Load):
        raise RuntimeError(f"the first command must be Load, not {options!r}")
    start = time.monotonic()
    try:
        model, vocab_size, weight_bytes = load(Path(options.model_dir))
    except LoadError as error:
        socket.send(encode([Failed(None, "load", str(error), traceback.format_exc())]))
        return
    except MemoryError:
        socket.send(encode([Failed(None, "memory", "There is not enough memory to load the model.")]))
        return
    seconds = time.monotonic() - start
    socket.send(encode([Loaded(vocab_size=vocab_size, weight_bytes=weight_bytes, seconds=seconds)]))
    _loop(socket, Engine(model, vocab_size, options))


def _loop(socket: zmq.Socket[bytes], engine: Engine) -> None:
    next_stats = 0.0
    while True:
        events: list[Event] = []
        # Idle, the first poll blocks until a command comes: no work, no wake-ups.
        patience = 0 if engine.busy else None
        while socket.poll(patience):
            patience = 0
            command = decode_command(socket.recv())
            if not isinstance(command, Generate | Cancel):
                return
            events += engine.handle(command)
        if engine.busy:
            events += engine.step()
        # Also after the last step, so that the gauges read zero while idle.
        if time.monotonic() >= next_stats or not engine.busy:
            events.append(engine.stats())
            next_stats = time.monotonic() + STATS_INTERVAL_S
        socket.send(encode(events))


def _die_with_parent() -> None:
    """The parent holds the other end of stdin; end of file means that it is gone, however it went."""
    while os.read(0, 1024):
        pass
    os._exit(0)


def main() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    threading.Thread(target=_die_with_parent, name="parent-watch", daemon=True).start()
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    socket.connect(sys.argv[1])
    serve(socket)
    # The default linger delivers the last events before the context closes.
    context.destroy(linger=2000)


if __name__ == "__main__":
    main()
