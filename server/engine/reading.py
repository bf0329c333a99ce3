"""Passes over prompts, and as many layers of one as there is time for. Runs in the engine process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from server.engine.checkpoint_keeping import CheckpointKeeping
from server.engine.prefill import Prefill, read_together
from server.engine.reading_memory import ReadingMemory
from server.engine.scheduler import PrefillScheduler
from server.engine.token_budget import TokenBudget


@dataclass(frozen=True, slots=True)
class Reading:
    """`scheduler` is told whom the tokens were read for, `budget` what they took."""

    model: Any
    budget: TokenBudget
    memory: ReadingMemory
    scheduler: PrefillScheduler
    checkpoints: CheckpointKeeping

    def begin(self, parts: list[tuple[Prefill, int]], seconds: float, beside: int) -> list[tuple[Prefill, int]]:
        """Some layers of a pass over the one of `parts`, or all of a pass over several. Returns those whose tokens are
        read with it, with how many of the prompt were before. `beside`: how many decode meanwhile."""
        if not parts:
            return []
        chosen, tokens = parts[0]
        if len(parts) == 1 and chosen.batchable:
            chosen.begin(tokens)
            return self.go_on(chosen, seconds, beside)
        before = [(prefill, prefill.done) for prefill, _ in parts]
        count = sum(tokens for _, tokens in parts)
        begun = time.monotonic()
        self.memory.measured(parts, lambda: read_together(self.model, parts))
        self.budget.record_pass(count, [(1, time.monotonic() - begun)])
        for prefill, tokens in parts:
            self.scheduler.charge(prefill.client, tokens)
        return before

    def go_on(self, prefill: Prefill, seconds: float, beside: int) -> list[tuple[Prefill, int]]:
        """Some more layers of the pass under way; see `begin`."""
        assert prefill.under_way is not None
        parts = [(prefill, prefill.under_way.tokens)]
        return self.memory.measured(parts, lambda: self._go_on(prefill, seconds, beside))

    def _go_on(self, prefill: Prefill, seconds: float, beside: int) -> list[tuple[Prefill, int]]:
        """Evaluate as many layers of the pass as fit, and one at least."""
        under_way, layers = prefill.under_way, len(prefill.layers)
        assert under_way is not None
        seconds = self.budget.piece_s(seconds, decoding=beside > 0)
        closing_s = self.checkpoints.closing_s(prefill, beside) if beside else 0.0
        first, begun = under_way.evaluated, time.monotonic()
        while prefill.under_way is not None:
            left_s, left = seconds - (time.monotonic() - begun), layers - under_way.evaluated
            count = self.budget.next_layers(
                under_way.tokens, layers, left, left_s, under_way.pieces, decoding=beside > 0
            )
            if count == left and left_s < closing_s + left * self.budget.layer_s(
                under_way.tokens, layers, under_way.pieces
            ):
                # The last layer is for the next chunk, with what follows it.
                count -= 1
            if not count and under_way.evaluated > first:
                break
            count = max(count, 1)
            piece_begun = time.monotonic()
            prefill.go_on(count)
            under_way.pieces.append((count, time.monotonic() - piece_begun))
            self.scheduler.charge(prefill.client, under_way.tokens * count / layers)
        if prefill.under_way is not None:
            return []
        self.budget.record_pass(under_way.tokens, under_way.pieces)
        return [(prefill, prefill.done - under_way.tokens)]
