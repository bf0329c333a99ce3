"""Prompts on their way into KV caches, chunk by chunk, several short ones together. Runs in the engine process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from server.engine import compat, kv
from server.engine.compat import Layers
from server.engine.prefixes.aside import Aside
from server.engine.prefixes.disk_work import Restore
from server.engine_client.protocol import EngineEvent, Request


@dataclass(slots=True)
class Pass:
    """A forward pass over `tokens`, of which the first layers are evaluated. `before`: the caches of the others, as
    they were. `pieces`: how many layers were evaluated at a time, and in how many seconds."""

    tokens: int
    before: Layers
    evaluated: int = 0
    pieces: list[tuple[int, float]] = field(default_factory=list)


class Prefill:
    """`done` prompt tokens are in `layers`. All but the last token are read here: the last one's logits are the first
    step of decoding."""

    # The KV cache of an earlier prompt may provide the first tokens.
    reuses_prefixes = True
    # It can be read together with others, and in passes that are cut between their layers.
    batchable = True

    def __init__(self, model: Any, request: Request, waits_for: int | None = None) -> None:
        self.request = request
        self.layers: Layers = []
        self.done = 0
        # Of them, those that were read for an earlier prompt.
        self.found = 0
        self.under_way: Pass | None = None
        # Not while its layers are evaluated: what MLX could not compute it takes for computed later, so when that fails
        # they may hold anything.
        self.intact = True
        # By which it is kept later, where it cannot be kept beside its own caches.
        self.aside: Aside | None = None
        # For the scheduler: see `scheduler.PendingPrefill`.
        self.age = 0
        # The id of an earlier request with the same prompt, worth waiting for: what it reads is read for both.
        self.waits_for = waits_for
        # What comes back from disk before it starts; None before that was asked.
        self.restore: Restore | None = None
        self._model = model

    @property
    def id(self) -> int:
        return self.request.id

    @property
    def client(self) -> str:
        return self.request.client

    def start(self, layers: Layers | None, done: int) -> None:
        """Begin after the first `done` tokens, which `layers` hold."""
        self.layers = make_prompt_cache(self._model) if layers is None else layers
        self.done = self.found = done

    @property
    def started(self) -> bool:
        return bool(self.layers)

    @property
    def progress(self) -> int:
        """Tokens that are read, those of the pass under way in the measure that it is."""
        under_way = self.under_way
        return self.done + (under_way.tokens * under_way.evaluated // len(self.layers) if under_way else 0)

    @property
    def unread(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt) - 1 - self.done

    @property
    def remaining(self) -> int:
        return self.unread

    def part(self, size: int, stops: Sequence[int]) -> int:
        """How many tokens to read next: at most `size`, and none behind the first of the offsets `stops` ahead."""
        return min([size, self.unread, *(stop - self.done for stop in stops if stop > self.done)])

    def read(self, tokens: int) -> None:
        """The next `tokens` of the prompt."""
        self.begin(tokens)
        self.go_on(len(self.layers))

    def begin(self, tokens: int) -> None:
        """A forward pass over the next `tokens`, which `go_on` evaluates. Nobody asks for the logits, so MLX computes
        none."""
        assert self.under_way is None
        before = list(map(compat.shared, self.layers))
        try:
            self._forward(self.next_tokens(tokens))
        except Exception:
            # Nothing was computed.
            self._go_back_to(before)
            raise
        self.under_way = Pass(tokens, before)

    def go_on(self, layers: int) -> None:
        """Evaluate the next `layers` of the pass: what they keep needs all that is before them."""
        under_way = self.under_way
        assert under_way is not None
        start, stop = under_way.evaluated, under_way.evaluated + layers
        # Held any longer, their buffers would be copied.
        under_way.before[start:stop] = [None] * len(under_way.before[start:stop])
        self.intact = False
        kv.evaluate(self.layers[start:stop])
        under_way.evaluated = min(stop, len(self.layers))
        if under_way.evaluated == len(self.layers):
            self.under_way = None
            self._commit(under_way.tokens)
        self.intact = True

    def undo(self) -> None:
        """Forget the pass under way, and what goes beyond the prompt; where there is no way back, all that was read."""
        if not self.intact:
            self.under_way, self.layers, self.done = None, [], 0
        if self.under_way is None:
            return
        before = zip(self.layers, self.under_way.before, strict=True)
        self.under_way = None
        self._go_back_to([compat.undone(layer, old, self.done) for layer, old in before])

    def _go_back_to(self, layers: Layers) -> None:
        self.layers, self.done = (layers, self.done) if None not in layers else ([], 0)

    def next_tokens(self, count: int) -> list[int]:
        return self.request.prompt[self.done : self.done + count]

    def result(self) -> list[EngineEvent]:
        """What to report once all is read."""
        return []

    def _forward(self, tokens: Sequence[int]) -> mx.array:
        """Logits, (1, tokens, vocab), not evaluated."""
        logits: mx.array = self._model(mx.array([tokens]), cache=self.layers)
        return logits

    def _commit(self, tokens: int) -> None:
        kv.evaluate(self.layers)
        self.done += tokens


def read_together(model: Any, parts: Sequence[tuple[Prefill, int]]) -> None:
    """The next tokens of several prompts in one forward pass: the weights are read once for all of them."""
    if len(parts) == 1:
        [(prefill, tokens)] = parts
        prefill.read(tokens)
        return
    chunks = [prefill.next_tokens(tokens) for prefill, tokens in parts]
    read = compat.prefill_together(model, [prefill.layers for prefill, _ in parts], chunks)
    kv.evaluate([layer for layers in read for layer in layers])
    for (prefill, tokens), layers in zip(parts, read, strict=True):
        prefill.layers = layers
        prefill.done += tokens
