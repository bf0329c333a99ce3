"""Whether there is memory for one more sequence, before a byte of it is allocated. Pure arithmetic; engine process.

A sequence is counted at the size that it will have `HORIZON` tokens from now (its maximum, if that is less): agents ask
for 32,000 tokens and use 200, so counting what is asked for would refuse nearly everything.
Two watermarks. Above the low one nothing starts and prefixes are evicted. The limit itself is the high one: what
grows beyond the horizon may reach it, and then the newest sequence ends.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from server.engine.cost_model import KVCostModel
from server.engine.token_budget import MIN_CHUNK_TOKENS
from server.engine_client.protocol import Request

HORIZON = 512
# The low watermark as a fraction of the limit; the rest is for what the arithmetic misses.
_LOW_WATERMARK = 0.92
# More than any context; some models take no more memory for it.
_ENDLESS = 2**31


@dataclass(frozen=True, slots=True)
class Admission:
    """`limit` and `weights` in bytes, for the whole process."""

    limit: int
    weights: int
    cost: KVCostModel

    @property
    def low_watermark(self) -> int:
        return int(self.limit * _LOW_WATERMARK)

    @property
    def most_tokens(self) -> int:
        """The longest prompt that can run here, alone."""
        longest = bisect_right(range(_ENDLESS), self._available, key=self._needed) - 1
        return max(0, longest)

    def refusal(self, request: Request) -> str | None:
        """Why the request can never run here; None when it can."""
        needed = self._needed(len(request.prompt))
        if needed <= self._available:
            return None
        return (
            f"The prompt of {len(request.prompt)} tokens needs {_size(needed)} of memory beside the model; "
            f"{_size(max(self._available, 0))} is available."
        )

    def fits(self, request: Request, running: Iterable[tuple[Request, int]]) -> bool:
        """Beside `running`, each with the tokens that it has now. A request that is alone may always try."""
        running = list(running)
        return not running or self.reserved([*running, (request, len(request.prompt))]) <= self.low_watermark

    def reserved(self, running: Iterable[tuple[Request, int]]) -> int:
        """Bytes of weights and sequences, as far ahead as the horizon. mlx-lm pads a batch to its longest sequence."""
        lengths = [self._expected_length(request, tokens) for request, tokens in running]
        return self.weights + len(lengths) * self.cost.kv_bytes(max(lengths, default=0))

    def max_chunk(self, active_bytes: int, activation_per_token: int) -> int:
        """Prompt tokens whose activations fit beside `active_bytes` in use."""
        return max(MIN_CHUNK_TOKENS, (self.limit - active_bytes) // max(1, activation_per_token))

    @property
    def _available(self) -> int:
        """Bytes beside the weights."""
        return self.low_watermark - self.weights

    def _needed(self, tokens: int) -> int:
        """Bytes beside the weights that reading a prompt of so many tokens takes."""
        return self.cost.kv_bytes(tokens) + MIN_CHUNK_TOKENS * self.cost.activation_per_token

    def _expected_length(self, request: Request, tokens: int) -> int:
        return min(len(request.prompt) + request.max_tokens, max(tokens, len(request.prompt)) + HORIZON)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"
