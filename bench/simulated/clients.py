"""Clients on the virtual clock: coroutines that yield what they do next; and the socket that the engine sees."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

from bench.simulated.clock import Clock
from server.engine_client.protocol import (
    Boundary,
    Cancel,
    EngineCommand,
    Failed,
    Finished,
    Generate,
    Prefilled,
    Sampling,
    Stop,
    Tokens,
    decode_events,
    encode,
)


@dataclass(eq=False, slots=True)
class Ask:
    """A prompt, and what came back: `times` are those of its tokens. Yielded, it is awaited, unless `wait` is False."""

    prompt: list[int]
    max_tokens: int
    boundaries: list[Boundary] = field(default_factory=list)
    client: str = ""
    wait: bool = True
    id: int = 0
    sent: float = 0.0
    cached: int = 0
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def ttft(self) -> float:
        return self.times[0] - self.sent

    @property
    def longest_gap(self) -> float:
        return max((later - earlier for earlier, later in itertools.pairwise(self.times)), default=0.0)


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class Leave:
    asked: Ask


Client = Generator[Ask | Pause | Leave, None, None]


class Failure(Exception):
    """The engine refused or failed a request: there is nothing to measure."""


class Clients:
    """In place of the engine's socket. `recv` gives `Stop` when all have ended."""

    def __init__(self, clock: Clock, clients: Iterable[Client]) -> None:
        self._clock = clock
        self._ids = itertools.count(1)
        self._order = itertools.count()
        self._due: list[tuple[float, int, Client]] = []
        self._waiting: dict[int, tuple[Ask, Client]] = {}
        self._commands: list[EngineCommand] = []
        for client in clients:
            self._resume_at(clock.now, client)

    # ---- as the engine's loop sees it

    def poll(self, timeout_ms: int | None = None) -> bool:
        """Whether a command is there, or comes within the time; the clock moves as far as it was waited."""
        limit = float("inf") if timeout_ms is None else self._clock.now + timeout_ms / 1000
        while not self._commands and not self._ended and self._due and self._due[0][0] <= limit:
            instant, _, client = heapq.heappop(self._due)
            self._clock.wait_until(instant)
            self._advance(client)
        if self._commands or self._ended:
            return True
        if timeout_ms is None:
            raise Failure("the engine waits for clients that wait for the engine")
        self._clock.wait_until(limit)
        return False

    def recv(self) -> bytes:
        return encode(self._commands.pop(0) if self._commands else Stop())

    def send(self, frame: bytes) -> None:
        for event in decode_events(frame):
            if isinstance(event, Prefilled | Tokens | Finished | Failed) and event.id in self._waiting:
                self._hear(event)

    # ---- the clients

    @property
    def _ended(self) -> bool:
        return not self._due and not self._waiting

    def _hear(self, event: Prefilled | Tokens | Finished | Failed) -> None:
        assert event.id is not None
        asked, client = self._waiting[event.id]
        match event:
            case Prefilled(cached=cached):
                asked.cached = max(asked.cached, cached)
            case Tokens(tokens=tokens):
                asked.tokens += tokens
                asked.times += [self._clock.now] * len(tokens)
            case Failed(message=message):
                raise Failure(message)
            case Finished():
                del self._waiting[event.id]
                if asked.wait:
                    self._resume_at(self._clock.now, client)

    def _resume_at(self, instant: float, client: Client) -> None:
        heapq.heappush(self._due, (instant, next(self._order), client))

    def _advance(self, client: Client) -> None:
        match next(client, None):
            case Ask() as asked:
                asked.id, asked.sent = next(self._ids), self._clock.now
                self._waiting[asked.id] = asked, client
                self._commands.append(_generate(asked))
                if not asked.wait:
                    self._resume_at(self._clock.now, client)
            case Pause(seconds):
                self._resume_at(self._clock.now + seconds, client)
            case Leave(asked):
                if self._waiting.pop(asked.id, None):
                    self._commands.append(Cancel(asked.id))
                self._resume_at(self._clock.now, client)


def _generate(asked: Ask) -> Generate:
    return Generate(
        id=asked.id,
        prompt=asked.prompt,
        max_tokens=asked.max_tokens,
        stop_tokens=[],
        sampling=Sampling(seed=0, temperature=0),
        boundaries=asked.boundaries,
        client=asked.client,
    )
