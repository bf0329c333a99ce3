"""What follows of the logits of a pass: what is drawn of them, and its logprobs. Runs in the engine process.

What the rows ask for is read when some come or go; a step is then the same few operations on columns, as each costs
the host some time.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from server.engine.penalties import Penalised, Penalties, change_logits
from server.engine.sampling import Sampler
from server.engine.scoring.wanted import Scored, Wanted
from server.engine_client.protocol import Generate


class Drawing:
    """For the `requests` of a batch as long as it stays the same, each with the `tokens` in its caches now, over a
    vocabulary of `width`."""

    def __init__(self, requests: Sequence[Generate], tokens: Sequence[Sequence[int]], width: int) -> None:
        samplings = [request.sampling for request in requests]
        self._sampler = Sampler(samplings, width)
        self._wanted = Wanted(requests)
        self._penalties: Penalties | None = None
        if change_logits(samplings):
            prompts = [len(request.prompt) for request in requests]
            self._penalties = Penalties(list(map(Penalised, samplings, tokens, prompts)), width)

    def draw(self, logits: mx.array, inputs: mx.array, positions: Sequence[int]) -> tuple[mx.array, Scored | None]:
        """(rows,), of `logits`, (rows, width), of the pass that reads `inputs`, (rows, 1). Row i has drawn
        `positions[i]` before. Once for each pass."""
        if self._penalties is not None:
            logits = self._penalties.apply(logits, inputs)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        drawn = self._sampler.draw(logprobs, positions)
        return drawn, self._wanted.of(logprobs, drawn)

    @property
    def state(self) -> list[mx.array]:
        """To be evaluated with a step, or it would pile up as a graph."""
        return [] if self._penalties is None else self._penalties.state
