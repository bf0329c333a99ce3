"""Whether there is memory for one more sequence, before a byte of it is allocated. Pure arithmetic; engine process.

A sequence is counted at the size that it will have `HORIZON` tokens from now (its maximum, if that is less): agents ask
for 32,000 tokens and use 200, so counting what is asked for would refuse nearly everything. What grows beyond that is
caught by the hard mark.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from server.engine.kv import Footprint
from server.engine.token_budget import SMALLEST_SLICE
from server.engine_client.protocol import Generate

HORIZON = 512
# Where admission stops and the prefix cache gives way, as a part of the limit; the rest is for what the arithmetic
# misses.
_SOFT = 0.92


@dataclass(frozen=True, slots=True)
class Admission:
    """`limit` and `weights` in bytes, for the whole process."""

    limit: int
    weights: int
    footprint: Footprint

    @property
    def soft(self) -> int:
        return int(self.limit * _SOFT)

    def fault(self, request: Generate) -> str | None:
        """Why the request can never run here, if so."""
        need = self.footprint.sequence(len(request.prompt)) + SMALLEST_SLICE * self.footprint.activation
        room = self.soft - self.weights
        if need <= room:
            return None
        return (
            f"The prompt of {len(request.prompt)} tokens needs {_size(need)} of memory beside the model; "
            f"{_size(max(room, 0))} are there."
        )

    def fits(self, request: Generate, running: Iterable[tuple[Generate, int]]) -> bool:
        """Beside `running`, each with the tokens that it has now. Alone it always may try."""
        running = list(running)
        return not running or self.reserved([*running, (request, len(request.prompt))]) <= self.soft

    def reserved(self, running: Iterable[tuple[Generate, int]]) -> int:
        """Bytes of weights and sequences, as far ahead as the horizon. mlx-lm pads a batch to its longest sequence."""
        lengths = [self._horizon(request, tokens) for request, tokens in running]
        return self.weights + len(lengths) * self.footprint.sequence(max(lengths, default=0))

    def slice_tokens(self, active: int, activation: int) -> int:
        """Prompt tokens whose activations, of so many bytes each, fit beside `active` bytes in use."""
        return max(SMALLEST_SLICE, (self.limit - active) // max(1, activation))

    def _horizon(self, request: Generate, tokens: int) -> int:
        return min(len(request.prompt) + request.max_tokens, max(tokens, len(request.prompt)) + HORIZON)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"
