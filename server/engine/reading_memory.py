"""What reading prompts takes of the engine's memory, beside what the cost model says. Runs in the engine process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import mlx.core as mx

from server.engine.admission import Admission
from server.engine.forecast import PeakForecast
from server.engine.prefill import Prefill
from server.engine.prefixes.prefix_cache import PrefixCache
from server.engine.token_budget import MIN_CHUNK_TOKENS
from server.engine_client.protocol import PeakMemory

# Beyond it the measurement is at fault, not the cost model.
_MOST_FACTOR = 4.0

T = TypeVar("T")
# Of a chunk: what reads it, and whether it is of several prompts.
_Kind = tuple[type[Prefill], bool]


class ReadingMemory:
    def __init__(self, admission: Admission, prefixes: PrefixCache) -> None:
        self._admission = admission
        self._prefixes = prefixes
        self._forecasts: dict[int, PeakForecast] = {}
        self._earlier_peak = 0
        # How much more a chunk has taken, at most, than the cost model says, by the kind of chunk: what a prompt takes
        # that is scored, or that is padded to others, says nothing of one that is read alone.
        self._factors: dict[_Kind, float] = {}

    @property
    def peak_bytes(self) -> int:
        """Of the process: MLX has one counter for it, which each chunk resets to measure itself."""
        return max(self._earlier_peak, mx.get_peak_memory())

    def max_chunk(self, prefill: Prefill, *, together: bool = False) -> int:
        """Tokens that fit into memory now, behind those that are read of the prompt; `together` with other prompts."""
        # The first chunk of a kind may take as much more as those of another one did.
        factor = self._factors.get((type(prefill), together), max(self._factors.values(), default=1.0))
        return self._admission.max_chunk(mx.get_active_memory(), prefill.done, factor)

    def begin(self, id: int, context: int) -> None:
        """A prompt is read from `context` on, which was found."""
        self._forecasts[id] = PeakForecast(self._admission.cost, mx.get_active_memory(), context, self._prefixes.nbytes)

    def end(self, id: int) -> PeakMemory:
        """What was told and measured of a prompt that is read."""
        forecast = self._forecasts.pop(id)
        return PeakMemory(forecast.predicted, forecast.measured)

    def drop(self, id: int) -> None:
        self._forecasts.pop(id, None)

    def measured(self, parts: Sequence[tuple[Prefill, int]], read: Callable[[], T]) -> T:
        """What `read` returns, once it is known how much more or less memory it needed than a pass over `parts` is told
        to."""
        contexts = [prefill.done for prefill, _ in parts]
        self._earlier_peak = self.peak_bytes
        mx.reset_peak_memory()
        active, kept = mx.get_active_memory(), self._prefixes.nbytes
        result = read()
        took = mx.get_peak_memory() - max(active, mx.get_active_memory())
        count = sum(tokens for _, tokens in parts)
        told = self._admission.cost.chunk_bytes(max(count, MIN_CHUNK_TOKENS), max(contexts))
        for (prefill, tokens), context in zip(parts, contexts, strict=True):
            aside = prefill.aside.nbytes if prefill.aside is not None else 0
            self._forecasts[prefill.id].chunk(context, tokens, mx.get_peak_memory(), kept + aside)
        kind = type(parts[0][0]), len(parts) > 1
        self._factors[kind] = min(max(self._factors.get(kind, 1.0), took / max(1, told)), _MOST_FACTOR)
        return result
