"""Bias and penalties of a batch: what a request adds to the logits of some tokens. Runs in the engine process.

Columns, so that a step is the same few operations for any number of rows; and what each row has read and drawn is kept
on the device, since the host knows a token one step too late. The order is that of mlx-lm: bias, then repetition, which
looks at prompt and answer; then presence and frequency, which look at the answer alone, as at OpenAI.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from server.engine_client.protocol import Sampling


class Penalised(NamedTuple):
    """A row: the tokens in its caches, of which the first `prompt_length` may be of its prompt."""

    sampling: Sampling
    tokens: Sequence[int]
    prompt_length: int


def change_logits(rows: Sequence[Sampling]) -> bool:
    """Whether any of them asks for what is here."""
    return any(_repeats(row) or _counts(row) or row.logit_bias for row in rows)


class Penalties:
    """Of the rows of a batch, over a vocabulary of `width`; for as long as the batch stays the same."""

    def __init__(self, rows: Sequence[Penalised], width: int) -> None:
        samplings = [row.sampling for row in rows]
        self._bias = _Bias(samplings) if any(sampling.logit_bias for sampling in samplings) else None
        self._repetition = _Repetition(rows, width) if any(map(_repeats, samplings)) else None
        self._answer = _Answer(rows, width) if any(map(_counts, samplings)) else None

    def apply(self, logits: mx.array, inputs: mx.array) -> mx.array:
        """(rows, width), when each row's `inputs`, (rows, 1), is the last token before. Once for each step."""
        if self._bias is not None:
            logits = self._bias.apply(logits)
        if self._repetition is not None:
            logits = self._repetition.apply(logits, inputs)
        return logits if self._answer is None else self._answer.apply(logits, inputs)

    @property
    def state(self) -> list[mx.array]:
        """To be evaluated with a step, or it would pile up as a graph."""
        return [part.state for part in (self._repetition, self._answer) if part is not None]


class _Bias:
    def __init__(self, rows: Sequence[Sampling]) -> None:
        biased = [(at, token, bias) for at, row in enumerate(rows) for token, bias in row.logit_bias.items()]
        self._rows, self._tokens = (mx.array([entry[which] for entry in biased]) for which in (0, 1))
        self._values = mx.array([bias for *_, bias in biased], mx.float32)

    def apply(self, logits: mx.array) -> mx.array:
        return logits.at[self._rows, self._tokens].add(self._values)


class _Repetition:
    """A logit that speaks for a token is divided, one that speaks against it multiplied. `state`: by what."""

    def __init__(self, rows: Sequence[Penalised], width: int) -> None:
        self._penalty = mx.array([[row.sampling.repetition_penalty] for row in rows], mx.float32)
        at, tokens = _places([row.tokens if _repeats(row.sampling) else [] for row in rows])
        self.state = mx.ones((len(rows), width))
        self.state[at, tokens] = self._penalty[at, 0]

    def apply(self, logits: mx.array, inputs: mx.array) -> mx.array:
        self.state = mx.put_along_axis(self.state, inputs, self._penalty, axis=-1)
        return mx.where(logits < 0, logits * self.state, logits / self.state)


class _Answer:
    """`state`: how often each token is in the answer."""

    def __init__(self, rows: Sequence[Penalised], width: int) -> None:
        self._presence = mx.array([[row.sampling.presence_penalty] for row in rows], mx.float32)
        self._frequency = mx.array([[row.sampling.frequency_penalty] for row in rows], mx.float32)
        self._has_presence = any(row.sampling.presence_penalty for row in rows)
        self._has_frequency = any(row.sampling.frequency_penalty for row in rows)
        places = _places([row.tokens[row.prompt_length :] if _counts(row.sampling) else [] for row in rows])
        self.state = mx.zeros((len(rows), width)).at[places].add(mx.ones(places[0].shape))
        # The first token to be read may be the prompt's last one; those after it are the answer's.
        self._added = mx.array([[len(row.tokens) >= row.prompt_length] for row in rows], mx.float32)
        self._each = mx.ones((len(rows), 1))

    def apply(self, logits: mx.array, inputs: mx.array) -> mx.array:
        seen = mx.take_along_axis(self.state, inputs, axis=-1)
        self.state = mx.put_along_axis(self.state, inputs, seen + self._added, axis=-1)
        self._added = self._each
        if self._has_presence:
            logits = logits - mx.where(self.state > 0, self._presence, 0.0)
        return logits - self.state * self._frequency if self._has_frequency else logits


def _places(tokens: Sequence[Sequence[int]]) -> tuple[mx.array, mx.array]:
    """The rows and columns of what each row has."""
    rows = np.repeat(np.arange(len(tokens)), [len(of_row) for of_row in tokens])
    return mx.array(rows), mx.array(np.fromiter(itertools.chain(*tokens), np.uint32, len(rows)))


def _repeats(sampling: Sampling) -> bool:
    return sampling.repetition_penalty != 1


def _counts(sampling: Sampling) -> bool:
    return bool(sampling.presence_penalty or sampling.frequency_penalty)
