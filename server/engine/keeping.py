"""What was read and answered becomes a prefix for the next turn, and its caches are given up for it, layer by layer.
Runs in the engine process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.engine import kv
from server.engine.batch import Answered, Batch
from server.engine.checkpoints import kind_at, worth_keeping
from server.engine.prefill import Prefill
from server.engine.prefixes.prefix_cache import PrefixCache
from server.engine_client.protocol import Finished, ScoreOptions


@dataclass(frozen=True, slots=True)
class Keeping:
    """bound: sets the limit of `prefixes` for when caches of so many tokens become one, beside so many bytes of caches
    that nobody runs any more."""

    prefixes: PrefixCache
    batch: Batch
    trimmable: bool
    bound: Callable[[int, int], None]

    def answers(self, answered: Sequence[Answered]) -> None:
        """The memory that they took becomes that of prefixes."""
        answered = [answer for answer in answered if answer.tokens]
        if not answered:
            return
        # To what was the limit as long as they ran.
        self.prefixes.make_room()
        self.batch.settle(answered)
        for index, answer in enumerate(answered):
            self.bound(len(answer.tokens), sum(map(_nbytes, answered[index + 1 :])))
            self._keep(answer)

    def _keep(self, answered: Answered) -> None:
        request, tokens, layers, _, aside = answered
        length, kind = worth_keeping(request, len(tokens))
        ends = [(length, kind)]
        if aside is not None and aside.end < length:
            # For when all of it is more than is left beside others.
            ends.append((aside.end, aside.kind))
        if isinstance(request, ScoreOptions) and not self.prefixes.has(tokens[:length], request.cache_salt):
            # A next turn goes on behind all of it, if nothing else is known.
            ends.append((len(tokens), kind_at(request, len(tokens))))
        for end, kind in ends:
            if None in layers:
                # Given up, and not kept.
                return
            # Not if only the prompt is worth it, and it cannot be cut out now; it may have been kept when it was read.
            can_be_cut = end == len(tokens) or self.trimmable or (aside is not None and aside.end == end)
            if can_be_cut and self.prefixes.store(
                tokens[:end], layers, request.boundaries, kind, request.cache_salt, aside=aside, give_up=True
            ):
                return


def left_by(prefill: Prefill, end: Finished | None = None) -> Answered:
    """As much of a prompt as was read."""
    return Answered(prefill.request, prefill.request.prompt[: prefill.done], prefill.layers, end, prefill.aside)


def _nbytes(answered: Answered) -> int:
    return kv.nbytes(answered.layers) + (answered.aside.nbytes if answered.aside is not None else 0)
