"""The most memory that the process takes while one prompt is read: as foretold, and as measured. Engine process."""

from __future__ import annotations

from dataclasses import dataclass

from server.engine.cost_model import KVCostModel


@dataclass(slots=True)
class PeakForecast:
    """`active`: bytes in use when `cached` tokens of the prompt were there and the rest was not. `kept`: those of kept
    prefixes among them. What others grow by meanwhile is not foretold."""

    cost: KVCostModel
    active: int
    cached: int
    kept: int
    predicted: int = 0
    measured: int = 0

    def chunk(self, done: int, tokens: int, peak: int, kept: int) -> None:
        """`tokens` were read behind `done`, with `kept` bytes of prefixes, and the process had `peak` bytes at most."""
        grown = self.cost.kv_bytes(done + tokens) - self.cost.kv_bytes(self.cached) + kept - self.kept
        self.predicted = max(self.predicted, self.active + grown + self.cost.chunk_bytes(tokens, done))
        self.measured = max(self.measured, peak)
