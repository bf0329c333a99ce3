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
from server.engine_client.protocol import Sampling

_GREEDY = 1e-5
_MASK64 = 2**64 - 1


class Sampler:
    """Draws for the rows of a batch, one for each of `rows`, over a vocabulary of `width`."""

    def __init__(self, rows: Sequence[Sampling], width: int) -> None:
        self._streams = [_mix(row.seed) for row in rows]
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
        self._xtc = _Xtc(rows) if any(row.xtc_probability > 0 for row in rows) else None

    def draw(self, logprobs: mx.array, positions: Sequence[int]) -> mx.array:
        """(rows, width) to (rows,). Row i draws by its seed and `positions[i]`, how many it has drawn before."""
        if self._all_greedy:
            return mx.argmax(logprobs, axis=-1)
        keys = self._keys(positions)
        logits = logprobs.astype(mx.float32)
        if self._inverse_temperature is not None:
            logits = logits * self._inverse_temperature
        logits = self._thresholds.apply(logits)
        if self._xtc is not None:
            logits, keys = self._xtc.apply(logits, keys)
        drawn = compat.draw_by_rows(logits, keys)
        return drawn if self._all_drawn else mx.where(self._drawn, drawn, mx.argmax(logprobs, axis=-1))

    def _keys(self, positions: Sequence[int]) -> mx.array:
        """Of token i of a row: (seed, i)."""
        numbers = [(stream + at) & _MASK64 for stream, at in zip(self._streams, positions, strict=True)]
        # As `mx.random.key` makes them: the high half first.
        return mx.array(np.array(numbers, ">u8").view(">u4").reshape(-1, 2).astype(np.uint32))


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
        kept = mx.array([row.top_k if 0 < row.top_k < width else width for row in rows])[:, None]
        self._last = kept - 1
        self._beyond = mx.arange(width) >= kept if any(0 < row.top_k < width for row in rows) else None
        self._top_p = _column([row.top_p for row in rows]) if any(row.top_p < 1 for row in rows) else None
        self._has_top_p = None if all(row.top_p < 1 for row in rows) else mx.array([[row.top_p < 1] for row in rows])

    def threshold(self, logits: mx.array) -> mx.array:
        """(rows of the group, width of the vocabulary) to (rows of the group, 1)"""
        ordered = largest(logits, self._width)
        if self._top_p is None:
            return mx.take_along_axis(ordered, self._last, axis=-1)
        if self._beyond is not None:
            ordered = mx.where(self._beyond, -mx.inf, ordered)
        before = mx.cumsum(mx.softmax(ordered, axis=-1), axis=-1, inclusive=False)
        # Also behind what top-k left the mass before may be less than 1 by rounding.
        last = mx.clip((before < self._top_p).sum(axis=-1, keepdims=True) - 1, 0, self._last)
        if self._has_top_p is not None:
            last = mx.where(self._has_top_p, last, self._last)
        return mx.take_along_axis(ordered, last, axis=-1)


class _Xtc:
    """ "Exclude top choices": at its probability, of the tokens that are likely enough all but the least likely go.

    Fewer than two exclude none.
    """

    def __init__(self, rows: Sequence[Sampling]) -> None:
        self._has = mx.array([row.xtc_probability > 0 for row in rows])[:, None]
        self._probability = _column([row.xtc_probability for row in rows])
        self._least = _column([row.xtc_threshold for row in rows])

    def apply(self, logits: mx.array, keys: mx.array) -> tuple[mx.array, mx.array]:
        """The logits, and the keys for what is drawn next."""
        split = compat.split_by_rows(keys)
        drop = self._has & (compat.uniform_by_rows(split[:, 1])[:, None] < self._probability)
        probabilities = mx.softmax(logits, axis=-1)
        least = mx.where(probabilities >= self._least, probabilities, mx.inf).min(axis=-1, keepdims=True)
        # Where none is as likely, `least` is infinite.
        logits = mx.where(drop & (probabilities > least), -mx.inf, logits)
        return logits, mx.where(self._has, split[:, 0], keys)


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(list(values), mx.float32)[:, None]


def _inverse(order: Sequence[int], rows: int) -> list[int]:
    """For each of the rows its place in `order`; where it has none, the place behind all."""
    place = {row: at for at, row in enumerate(order)}
    return [place.get(row, len(order)) for row in range(rows)]


def _mix(seed: int) -> int:
    """splitmix64's finalizer: neighbouring seeds must not share their streams shifted by one token."""
    z = (seed + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)
