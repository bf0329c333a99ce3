"""What was read and answered becomes a prefix for the next turn, and its caches are given up for it, layer by layer.
Runs in the engine process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.engine import kv
from server.engine.batch import Answered, Batch
from server.engine.checkpoints import kind_at, worth_keeping
from server.engine.decoder import Newcomer
from server.engine.prefill import Prefill
from server.engine.prefixes.prefix_cache import PrefixCache
from server.engine_client.protocol import Generate


@dataclass(frozen=True, slots=True)
class Keeping:
    """bound: sets the limit of `prefixes` for when caches of so many tokens become one, beside so many bytes of caches
    that nobody runs any more."""

    prefixes: PrefixCache
    batch: Batch
    trimmable: bool
    bound: Callable[[int, int], None]

    def unread(self, prefill: Prefill) -> None:
        """As much of a prompt as was read."""
        request, tokens, layers = prefill.request, prefill.request.prompt[: prefill.done], prefill.layers
        if isinstance(request, Generate):
            self.answers([Answered(request, tokens, layers, None, prefill.aside)] if tokens else [])
        elif tokens:
            # What the questions go on with shares the caches, so they cannot be given up.
            kind = kind_at(request, len(tokens))
            self.prefixes.store(tokens, layers, request.boundaries, kind, request.cache_salt)

    def unsteered(self, newcomer: Newcomer) -> None:
        """A prompt that is read and not answered."""
        request = newcomer.request
        self.answers([Answered(request, request.prompt[:-1], newcomer.layers, None, newcomer.aside)])

    def answers(self, answered: Sequence[Answered]) -> None:
        """The memory that they took becomes that of prefixes."""
        if not answered:
            return
        # To what was the limit as long as they ran.
        self.prefixes.make_room()
        self.batch.settle(answered)
        for index, answer in enumerate(answered):
            self.bound(len(answer.tokens), sum(kv.nbytes(other.layers) for other in answered[index + 1 :]))
            self._keep(answer)

    def _keep(self, answered: Answered) -> None:
        request, tokens, layers, _, aside = answered
        length, kind = worth_keeping(request, len(tokens))
        # Not if only the prompt is, and it cannot be cut out now; it may have been kept when it was read.
        if length == len(tokens) or self.trimmable or (aside is not None and aside.end == length):
            self.prefixes.store(
                tokens[:length], layers, request.boundaries, kind, request.cache_salt, aside=aside, give_up=True
            )
