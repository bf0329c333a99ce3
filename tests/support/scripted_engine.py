"""An engine process without a model: speaks `server/engine_client/protocol.py`, follows a script from its command line.

python tests/support/scripted_engine.py [options] ADDRESS
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import deque
from pathlib import Path

import zmq
from tokenizers import Tokenizer

from quantize.worker import exit_with_parent
from server.engine_client.protocol import (
    Cancel,
    EngineEvent,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    Loading,
    OptionsScored,
    Prefilled,
    Request,
    ScoreOptions,
    Stats,
    Tokens,
    TokenTable,
    decode_command,
    encode,
)
from tests.support.speaking import said


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--interval", type=float, default=0.0, help="seconds per step")
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--load-error", default="", help="refuse to load with this sentence")
    parser.add_argument("--exit-at-start", action="store_true", help="as an engine that cannot import MLX does")
    parser.add_argument("--crash-at-load", action="store_true")
    parser.add_argument("--crash-when-loaded", action="store_true")
    parser.add_argument("--crash-for", default="", help="crash at the load of a folder of this name")
    parser.add_argument("--crash-at-step", type=int, default=-1, help="SIGKILL itself at this step")
    parser.add_argument("--crash-once", type=Path, help="--crash-at-step only where this file is not: it is made then")
    parser.add_argument("--hang-at-step", type=int, default=-1)
    parser.add_argument("--noise", type=int, default=0, help="characters on stderr, in one line, before it loads")
    parser.add_argument("--fail-at-token", type=int, default=-1, help="each request fails at this token")
    parser.add_argument("--slots", type=int, default=0, help="0 = as Load says")
    parser.add_argument("--note-followed", type=Path, help="where it notes how many others follow each request")
    parser.add_argument("--speaks", action="store_true", help="answers as tests/support/speaking.py does")
    script = parser.parse_args()
    if script.exit_at_start:
        raise SystemExit(3)
    exit_with_parent(sys.stdin.buffer)
    socket: zmq.Socket[bytes] = zmq.Context().socket(zmq.PAIR)
    socket.connect(script.address)
    load = decode_command(socket.recv())
    if not isinstance(load, Load):
        raise SystemExit("no Load")
    if script.noise:
        print("x" * script.noise, file=sys.stderr)
    socket.send(encode([Loading(30, 100)]))
    time.sleep(script.load_seconds)
    if script.crash_at_load or Path(load.model_dir).name == script.crash_for:
        os.kill(os.getpid(), signal.SIGKILL)
    if script.load_error:
        socket.send(encode([Failed(None, "load", script.load_error)]))
        socket.recv()
        return
    socket.send(encode([Loaded(seconds=script.load_seconds)]))
    if script.crash_when_loaded:
        # Long enough for the message to leave.
        time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGKILL)
    kind = Speaking if script.speaks else Script
    kind(script, load, script.slots or load.max_concurrent).run(socket)


class Script:
    """One token per running request and step: printable ones, in the order of their ids.

    What it may take of memory it reports as what it holds.
    """

    def __init__(self, script: argparse.Namespace, load: Load, slots: int) -> None:
        self.script = script
        self.memory_limit = load.memory_limit
        self.slots = slots
        self.waiting: deque[Request] = deque()
        self.running: dict[int, tuple[Request, int]] = {}
        self.steps = 0

    def run(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            patience = 0 if self.running or self.waiting else None
            while socket.poll(patience):
                patience = 0
                command = decode_command(socket.recv())
                if isinstance(command, Generate | ScoreOptions):
                    self.waiting.append(command)
                    self.note(command)
                elif isinstance(command, Cancel):
                    self.running.pop(command.id, None)
                    self.waiting = deque(r for r in self.waiting if r.id != command.id)
                elif not isinstance(command, TokenTable):
                    return
            if events := self.step():
                socket.send(encode([*events, self.stats()]))
            time.sleep(self.script.interval)

    def note(self, request: Request) -> None:
        if self.script.note_followed:
            with self.script.note_followed.open("a") as file:
                file.write(f"{request.followed_by}\n")

    def step(self) -> list[EngineEvent]:
        if not self.running and not self.waiting:
            return [self.stats()]
        once: Path | None = self.script.crash_once
        if self.steps == self.script.crash_at_step and not (once and once.exists()):
            if once:
                once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.steps == self.script.hang_at_step:
            time.sleep(3600)
        self.steps += 1
        events: list[EngineEvent] = []
        while self.waiting and len(self.running) < self.slots:
            request = self.waiting.popleft()
            self.running[request.id] = (request, 0)
            events.append(self.prefilled(request))
        for id, (request, made) in list(self.running.items()):
            if made == self.script.fail_at_token:
                events.append(Failed(id, "internal", "The scripted engine fails here."))
                del self.running[id]
                continue
            if isinstance(request, ScoreOptions):
                # Each option is half as likely as the one before it.
                logprobs = [[-0.693147 * index for index in range(len(b.options))] for b in request.branches]
                events += [OptionsScored(id, logprobs), Finished(id, "stop")]
                del self.running[id]
                continue
            answer = self.answer(request)
            if answer is None or made < len(answer):
                events.append(Tokens(id, [40 + made % 40 if answer is None else answer[made]]))
                made += 1
            self.running[id] = (request, made)
            if made == request.max_tokens or (answer is not None and made == len(answer)):
                events.append(Finished(id, "length" if made == request.max_tokens else "stop"))
                del self.running[id]
        return events

    def prefilled(self, request: Generate) -> Prefilled:
        return Prefilled(request.id, len(request.prompt), len(request.prompt))

    def answer(self, request: Generate) -> list[int] | None:
        """Its tokens; None is one that only `max_tokens` ends."""
        return None

    def stats(self) -> Stats:
        return Stats(
            running=len(self.running),
            waiting=len(self.waiting),
            kv_bytes=0,
            active_bytes=self.memory_limit,
            peak_bytes=self.memory_limit,
        )


class Speaking(Script):
    """Reads its prompts and answers them. Half of each it says to have found in its cache."""

    def __init__(self, script: argparse.Namespace, load: Load, slots: int) -> None:
        super().__init__(script, load, slots)
        self.tokenizer = Tokenizer.from_file(str(Path(load.model_dir) / "tokenizer.json"))
        self.answers: dict[int, list[int]] = {}

    def prefilled(self, request: Generate) -> Prefilled:
        total = len(request.prompt)
        return Prefilled(request.id, total, total, total // 2, total // 2)

    def answer(self, request: Generate) -> list[int]:
        if request.id not in self.answers:
            prompt = self.tokenizer.decode(request.prompt, skip_special_tokens=False)
            held = request.grammar.text if request.grammar and not request.grammar.opening else ""
            self.answers[request.id] = self.tokenizer.encode(said(prompt, held), add_special_tokens=False).ids
        return self.answers[request.id]


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main()
