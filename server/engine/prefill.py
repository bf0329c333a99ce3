"""Prompts on their way into KV caches, slice by slice, several short ones together. Runs in the engine process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import PromptProcessingBatch
from mlx_lm.models.cache import make_prompt_cache

from server.engine.kv import Layers
from server.engine_client.protocol import EngineEvent, Generate


class Prefill:
    """`done` prompt tokens are in `layers`. All but the last token are read here: the last one's logits are the first
    step of decoding."""

    def __init__(self, model: Any, request: Generate, after: int | None = None) -> None:
        self.request = request
        self.layers: Layers = []
        self.done = 0
        # For whose slice is next: see `scheduler.Reading`.
        self.passed_over = 0
        self.after = after
        self._model = model

    @property
    def id(self) -> int:
        return self.request.id

    @property
    def client(self) -> str:
        return self.request.client

    def go_on_from(self, layers: Layers | None, done: int) -> None:
        """Begin behind the first `done` tokens, which `layers` hold."""
        self.layers = make_prompt_cache(self._model) if layers is None else layers
        self.done = done

    @property
    def begun(self) -> bool:
        return bool(self.layers)

    @property
    def remaining(self) -> int:
        return len(self.request.prompt) - 1 - self.done

    @property
    def largest(self) -> int:
        """Tokens of a slice at most."""
        return self.remaining

    @property
    def sociable(self) -> bool:
        """Whether it can be read together with others."""
        return True

    def read(self, tokens: int) -> None:
        """The next `tokens` of the prompt; nobody asks for the logits, so MLX computes none."""
        self._forward(self.ahead(tokens))
        self._settle(tokens)

    def ahead(self, tokens: int) -> list[int]:
        """The next `tokens` of the prompt."""
        return self.request.prompt[self.done : self.done + tokens]

    def up_to(self, stops: Sequence[int]) -> int:
        """Tokens to the first of `stops` that lies ahead, or to the end."""
        return min([*(stop - self.done for stop in stops if stop > self.done), self.remaining])

    def result(self) -> list[EngineEvent]:
        """What is to be told once all is read."""
        return []

    def _forward(self, tokens: Sequence[int]) -> mx.array:
        """Logits, (1, tokens, vocab), not evaluated."""
        logits: mx.array = self._model(mx.array([tokens]), cache=self.layers)
        return logits

    def _settle(self, tokens: int) -> None:
        mx.eval([layer.state for layer in self.layers])
        # Buffers of a slice fit no decode step; kept, they would count against the memory of others.
        mx.clear_cache()
        self.done += tokens


def read_together(model: Any, parts: Sequence[tuple[Prefill, int]]) -> None:
    """The next tokens of several prompts in one forward pass: the weights are read once for all of them."""
    if len(parts) == 1:
        [(prefill, tokens)] = parts
        prefill.read(tokens)
        return
    pieces = [prefill.ahead(tokens) for prefill, tokens in parts]
    batch = PromptProcessingBatch(
        model,
        [prefill.id for prefill, _ in parts],
        [prefill.layers for prefill, _ in parts],
        [[] for _ in parts],
        prefill_step_size=max(map(len, pieces)),
    )
    batch.prompt(pieces)
    for index, (prefill, tokens) in enumerate(parts):
        prefill.layers = batch.extract_cache(index)
        prefill.done += tokens
    mx.eval([layer.state for prefill, _ in parts for layer in prefill.layers])
