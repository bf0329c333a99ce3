"""Sequences that mlx-lm cannot decode as one batch: each on caches of its own, one pass a step each.

The interface is that of mlx-lm's `GenerationBatch`, so `Batch` need not know which of the two it has. Runs in the
engine process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.engine.compat import Layers, SingleSequence


class SideBySide:
    def __init__(self, sequences: Sequence[SingleSequence] = ()) -> None:
        self.sequences = list(sequences)

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def uids(self) -> list[int]:
        return [id for sequence in self.sequences for id in sequence.uids]

    @property
    def tokens(self) -> list[list[int]]:
        return [tokens for sequence in self.sequences for tokens in sequence.tokens]

    @property
    def prompt_cache(self) -> Layers:
        """The layers of all sequences, one sequence's after the other's."""
        return [layer for sequence in self.sequences for layer in sequence.prompt_cache]

    def extend(self, other: SideBySide) -> None:
        self.sequences += other.sequences

    def next(self) -> list[Any]:
        """A token of each; those that finished are gone afterwards."""
        responses = [response for sequence in self.sequences for response in sequence.next()]
        self.sequences = [sequence for sequence in self.sequences if len(sequence)]
        return responses

    def extract_cache(self, index: int) -> Layers:
        return self.sequences[index].extract_cache(0)

    def filter(self, keep: Sequence[int]) -> None:
        self.sequences = [self.sequences[index] for index in keep]
