"""Drawing the next tokens of a batch: per request, reproducible, whatever else is in it. Runs in the engine process.

The order is that of Hugging Face and vLLM, then XTC: penalties and bias, temperature, top-k, top-p, min-p. The
parameters of the requests are columns, so that a step is the same few operations for any number of rows. What a row
draws depends on nothing but itself: rows are sorted together with those that need as much of their order, so each is
computed in one shape only.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from server.engine import compat
from server.engine.largest import FEW, largest
from server.engine.random_numbers import RandomNumbers
from server.engine_client.protocol import Sampling

_GREEDY = 1e-5
# More than the mass before the likeliest token, which a top-p of 0 keeps too, and less than that before any other.
_LEAST_TOP_P = 1e-30


class Sampler:
    """Draws for the rows of a batch, one for each of `rows`, over a vocabulary of `width`."""

    def __init__(self, rows: Sequence[Sampling], width: int) -> None:
        drawn = [row.temperature >= _GREEDY for row in rows]
        self._all_greedy, self._all_drawn = not any(drawn), all(drawn)
        self._drawn = mx.array(drawn)
        if self._all_greedy:
            return
        # A greedy row is computed as one without filters, and not used.
        rows = [row if random else Sampling(seed=0) for row, random in zip(rows, drawn, strict=True)]
        inverse = [1 / row.temperature for row in rows]
        # At a temperature of 1, as most models want it, the logits stay as they are.
        self._inverse_temperature = _column(inverse) if any(factor != 1 for factor in inverse) else None
        self._thresholds = Thresholds(rows, width)
        decides = [row.xtc_probability > 0 for row in rows]
        self._xtc = _Xtc(rows) if any(decides) else None
        self._numbers = RandomNumbers([row.seed for row in rows], decides)

    def draw(self, logprobs: mx.array, positions: Sequence[int]) -> mx.array:
        """(rows, width) to (rows,). Row i draws by its seed and `positions[i]`, how many it has drawn before."""
        if self._all_greedy:
            return mx.argmax(logprobs, axis=-1)
        numbers, decisions = self._numbers.at(positions)
        logits = logprobs.astype(mx.float32)
        if self._inverse_temperature is not None:
            logits = logits * self._inverse_temperature
        logits = self._thresholds.apply(logits)
        if self._xtc is not None and decisions is not None:
            logits = self._xtc.apply(logits, decisions)
        drawn = compat.draw_by_rows(logits, numbers)
        return drawn if self._all_drawn else mx.where(self._drawn, drawn, mx.argmax(logprobs, axis=-1))


class Thresholds:
    """Top-k, top-p and min-p: each keeps what is at least as likely as some token, so they are one threshold.

    Top-p counts the mass that top-k left, min-p compares with the likeliest token. The likeliest always stays.
    """

    def __init__(self, rows: Sequence[Sampling], width: int) -> None:
        few, all_ = min(FEW, width), width
        top_k = [row.top_k if 0 < row.top_k < width else 0 for row in rows]
        short = [i for i, k in enumerate(top_k) if 0 < k <= few]
        long = [i for i, row in enumerate(rows) if i not in short and (top_k[i] or row.top_p < 1)]
        self._groups = [_Group([rows[i] for i in g], g, w) for g, w in ((short, few), (long, all_)) if g]
        # The usual case is one group of all rows; then nothing is gathered.
        whole = len(self._groups) == 1 and len(short) + len(long) == len(rows)
        self._whole = self._groups[0] if whole else None
        self._places = mx.array(_inverse([*short, *long], len(rows)))
        ratios = [np.log(row.min_p) if row.min_p > 0 else -np.inf for row in rows]
        self._min_p = _column(ratios) if any(row.min_p > 0 for row in rows) else None

    def apply(self, logits: mx.array) -> mx.array:
        """What is excluded is -inf."""
        threshold = None
        if self._whole is not None:
            threshold = self._whole.threshold(logits)
        elif self._groups:
            found = [group.threshold(logits[group.rows]) for group in self._groups]
            # The last one is for rows in no group.
            threshold = mx.concatenate([*found, mx.array([[-mx.inf]])])[self._places]
        if self._min_p is not None:
            least = logits.max(axis=-1, keepdims=True) + self._min_p
            threshold = least if threshold is None else mx.maximum(threshold, least)
        return logits if threshold is None else mx.where(logits < threshold, -mx.inf, logits)


class _Group:
    """Rows, by their `indices`, of which the `width` largest are sorted."""

    def __init__(self, rows: Sequence[Sampling], indices: list[int], width: int) -> None:
        self.rows = mx.array(indices)
        self._width = width
        kept = [row.top_k if 0 < row.top_k < width else width for row in rows]
        # Ascending: what top-k leaves is behind. None where that is all.
        self._beyond = None
        if any(count < width for count in kept):
            self._beyond = mx.arange(width) < width - mx.array(kept)[:, None]
        # The mass before a token must be less, for it to be kept. None where all that top-k leaves is.
        self._mass = None
        if any(row.top_p < 1 for row in rows):
            self._mass = _column([max(row.top_p, _LEAST_TOP_P) if row.top_p < 1 else np.inf for row in rows])
            if self._beyond is not None:
                # Behind what top-k left the mass before may be less than 1 by rounding.
                self._mass = mx.where(self._beyond, -1.0, self._mass)

    def threshold(self, logits: mx.array) -> mx.array:
        """(rows of the group, width of the vocabulary) to (rows of the group, 1)"""
        ordered = largest(logits, self._width)
        if self._mass is None:
            kept = ordered if self._beyond is None else mx.where(self._beyond, mx.inf, ordered)
        else:
            likely = ordered if self._beyond is None else mx.where(self._beyond, -mx.inf, ordered)
            before = mx.cumsum(mx.softmax(likely, axis=-1), axis=-1, reverse=True, inclusive=False)
            kept = mx.where(before < self._mass, ordered, mx.inf)
        return kept.min(axis=-1, keepdims=True)


class _Xtc:
    """ "Exclude top choices": at its probability, of the tokens that are likely enough all but the least likely go.

    Fewer than two exclude none.
    """

    def __init__(self, rows: Sequence[Sampling]) -> None:
        self._has = mx.array([row.xtc_probability > 0 for row in rows])[:, None]
        self._probability = _column([row.xtc_probability for row in rows])
        self._least = _column([row.xtc_threshold for row in rows])

    def apply(self, logits: mx.array, decisions: mx.array) -> mx.array:
        """`decisions`, (rows, 1), are uniform between 0 and 1."""
        drop = self._has & (decisions < self._probability)
        probabilities = mx.softmax(logits, axis=-1)
        least = mx.where(probabilities >= self._least, probabilities, mx.inf).min(axis=-1, keepdims=True)
        # Where none is as likely, `least` is infinite.
        return mx.where(drop & (probabilities > least), -mx.inf, logits)


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(list(values), mx.float32)[:, None]


def _inverse(order: Sequence[int], rows: int) -> list[int]:
    """For each of the rows its place in `order`; where it has none, the place behind all."""
    place = {row: at for at, row in enumerate(order)}
    return [place.get(row, len(order)) for row in range(rows)]
