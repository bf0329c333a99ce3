"""Prompts that are read, and whose grammar is not compiled yet. Runs in the engine process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from server.engine import kv
from server.engine.decoder import Newcomer
from server.engine.device.failures import explain
from server.engine.steering.grammar import GrammarPending, Grammars
from server.engine.steering.tokens import GrammarError
from server.engine_client.protocol import EngineEvent, Failed, Request

log = logging.getLogger("configi.engine")

# With nothing else to do, a step waits for a grammar no longer than this: commands must be heard.
_GRAMMAR_WAIT_S = 0.02


class Unsteered:
    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._waiting: list[Newcomer] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, newcomers: Sequence[Newcomer]) -> None:
        self._waiting += newcomers

    def ready(self, events: list[EngineEvent], *, wait: bool) -> tuple[list[Newcomer], list[Newcomer]]:
        """Those whose grammar is there, with it, or who need none; `wait` a moment for it. And those whose grammar
        cannot be made, who are told so."""
        if wait and self._waiting:
            self._grammars.wait([newcomer.request for newcomer in self._waiting], _GRAMMAR_WAIT_S)
        ready, refused, waiting = [], [], []
        for newcomer in self._waiting:
            try:
                steering = self._grammars.steering(newcomer.request)
            except GrammarPending:
                waiting.append(newcomer)
            except GrammarError as error:
                events.append(Failed(newcomer.request.id, "invalid", str(error)))
                refused.append(newcomer)
            except Exception as error:
                failure = explain(error)
                log.error("a grammar cannot be made", exc_info=error)
                events.append(Failed(newcomer.request.id, failure.kind, failure.message))
                refused.append(newcomer)
            else:
                ready.append(newcomer._replace(steering=steering))
        self._waiting = waiting
        return ready, refused

    def remove(self, id: int) -> Newcomer | None:
        """Take out `id`, if it is here."""
        left = next((newcomer for newcomer in self._waiting if newcomer.request.id == id), None)
        self._waiting = [newcomer for newcomer in self._waiting if newcomer is not left]
        return left

    def requests(self) -> Iterator[tuple[Request, int]]:
        """With the tokens in their caches."""
        return ((newcomer.request, len(newcomer.request.prompt) - 1) for newcomer in self._waiting)

    @property
    def nbytes(self) -> int:
        return sum(kv.nbytes(newcomer.layers) for newcomer in self._waiting)

    @property
    def asides(self) -> int:
        """Bytes."""
        return sum(newcomer.aside.nbytes for newcomer in self._waiting if newcomer.aside is not None)

    def drop_asides(self) -> None:
        self._waiting = [newcomer._replace(aside=None) for newcomer in self._waiting]
