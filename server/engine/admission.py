"""Whether there is memory for one more sequence, before a byte of it is allocated. Pure arithmetic; engine process.

A sequence is counted at the size that it will have `HORIZON` tokens from now (its maximum, if that is less): agents ask
for 32,000 tokens and use 200, so counting what is asked for would refuse nearly everything.
Two watermarks. Above the low one nothing starts and prefixes are evicted. The limit itself is the high one: what
grows beyond the horizon may reach it, and then the newest sequence ends. What lies between them is an amount, and no
part of the limit: on a Mac of 16 GB the weights leave a tenth of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from server.engine.cost_model import KVCostModel
from server.engine.token_budget import MIN_CHUNK_TOKENS
from server.engine_client.protocol import Request

HORIZON = 512
# Between the watermarks, for what the arithmetic misses: this part of what the weights leave, so many bytes at most.
_RESERVE_SHARE = 5
_MOST_RESERVE = 512 * 10**6
# Who may start can read so many tokens at a time, however long its prompt has become.
_LEAST_CHUNK = 64
# A chunk takes no more, whatever there is: with a long context it is the scores of attention that take it, and time.
_MOST_CHUNK = 4 * 10**9
# When a sequence joins or leaves, mlx-lm makes the buffers of all anew, layer by layer, cut, padded and joined: so many
# copies of one layer were seen at once. One sequence alone is only copied as it grows.
_STEP_COPIES = 4
_COPIES_ALONE = 2
# More than any context; some models take no more memory for it.
_ENDLESS = 2**31
# More than any chunk.
_MOST_TOKENS = 2**13


@dataclass(frozen=True, slots=True)
class Admission:
    """`limit` and `weights` in bytes, for the whole process."""

    limit: int
    weights: int
    cost: KVCostModel

    @property
    def low_watermark(self) -> int:
        return self.limit - min(_MOST_RESERVE, max(0, self.limit - self.weights) // _RESERVE_SHARE)

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
        return not running or self.ahead([*running, (request, len(request.prompt))]) <= self.low_watermark

    def ahead(self, running: Iterable[tuple[Request, int]]) -> int:
        """Bytes of weights and sequences, as far ahead as the horizon, and of the steps until then: a prompt that is
        being read is as long for them as it will be."""
        running = [(request, max(tokens, len(request.prompt))) for request, tokens in running]
        return self.reserved(running) + self.working(running)

    def reserved(self, running: Iterable[tuple[Request, int]]) -> int:
        """Bytes of weights and sequences, as far ahead as the horizon. mlx-lm pads a batch to its longest sequence."""
        lengths = [self._expected_length(request, tokens) for request, tokens in running]
        return self.weights + len(lengths) * self.cost.kv_bytes(max(lengths, default=0))

    def padded(self, running: Iterable[tuple[Request, int]]) -> int:
        """Bytes of sequences as one batch, as long as they are now."""
        lengths = [tokens for _, tokens in running]
        return len(lengths) * self.cost.kv_bytes(max(lengths, default=0))

    def working(self, running: Iterable[tuple[Request, int]], *, reading: bool = True) -> int:
        """Bytes that the next step takes for as long as it lasts: when prompts are read, a chunk of whichever has the
        longest context, or the copies of one layer when the batch changes, and a token for each."""
        lengths = [tokens for _, tokens in running]
        longest = max(lengths, default=0)
        rows = _STEP_COPIES * len(lengths) if len(lengths) > 1 else _COPIES_ALONE
        copies = rows * self.cost.per_context * longest + len(lengths) * self.cost.activation_per_token
        return max(self.cost.chunk_bytes(_LEAST_CHUNK, longest), copies) if reading else copies

    def beside(self, running: Iterable[tuple[Request, int]], moved: int = 0) -> int:
        """Bytes that are left beside `running`; while caches of `moved` tokens, which are among these bytes, become a
        prefix, the copies of one layer of them are not."""
        running = list(running)
        moving = _COPIES_ALONE * self.cost.per_context * moved
        return self.low_watermark - max(self.ahead(running), self.reserved(running) + moving)

    def max_chunk(self, active_bytes: int, context: int, factor: float = 1.0) -> int:
        """Prompt tokens that can be read behind `context` beside `active_bytes` in use, where a chunk takes `factor` of
        what the cost model says."""
        room = int(min(self.limit - active_bytes, _MOST_CHUNK) / factor)
        return bisect_right(range(_MOST_TOKENS), room, lo=MIN_CHUNK_TOKENS + 1, key=self._chunk_behind(context)) - 1

    def _chunk_behind(self, context: int) -> Callable[[int], int]:
        """What so many tokens behind `context` take: as long as they are read, and from then on."""
        held = self.cost.kv_bytes(context)
        return lambda tokens: self.cost.chunk_bytes(tokens, context) + self.cost.kv_bytes(context + tokens) - held

    @property
    def _available(self) -> int:
        """Bytes beside the weights."""
        return self.low_watermark - self.weights

    def _needed(self, tokens: int) -> int:
        """Bytes beside the weights that reading a prompt of so many tokens takes."""
        return self.cost.kv_bytes(tokens) + self.cost.chunk_bytes(max(1, min(tokens, _LEAST_CHUNK)), tokens)

    def _expected_length(self, request: Request, tokens: int) -> int:
        return min(len(request.prompt) + request.max_tokens, max(tokens, len(request.prompt)) + HORIZON)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"
