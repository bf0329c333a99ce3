"""What the solvers know of a matrix's inputs: sums over calibration tokens, small and mergeable.

A matrix W (out, in) sees Xq, the inputs of the model quantized so far, where the full-precision model has Xf. Of n
tokens, rows of (n, in), three sums in float32 are kept:

    hessian  Xq^T Xq              (in, in)
    drift    (Xf - Xq)^T Xq       (in, in)    what the quantized layers before have changed
    stream   R^T Xq               (out, in)   R (n, out): the full-precision residual stream less the quantized one
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx

from quantize.forward.products import product

# Rows that are summed in one product.
_TOGETHER = 1024


@dataclass(frozen=True, slots=True)
class Statistics:
    """The sums over `tokens` tokens for one matrix, or for one expert's. `stream` only where R is corrected."""

    hessian: mx.array
    drift: mx.array
    tokens: int
    stream: mx.array | None = None

    @property
    def columns(self) -> int:
        return int(self.hessian.shape[-1])

    @property
    def tokens_per_dimension(self) -> float:
        return self.tokens / self.columns


def measure(inputs: mx.array, full: mx.array | None = None, stream: mx.array | None = None) -> Statistics:
    """The statistics of some tokens.

    inputs: Xq (n, in) of any float dtype; full: Xf (n, in), None where both streams are the same; stream: R (n, out).
    Zero tokens are allowed: an expert may be chosen by none.
    """
    quantized = inputs.astype(mx.float32)
    gap = mx.zeros_like(quantized) if full is None else full.astype(mx.float32) - quantized
    error = None if stream is None else product(stream.astype(mx.float32).T, quantized)
    return Statistics(product(quantized.T, quantized), product(gap.T, quantized), inputs.shape[0], error)


def merge(first: Statistics, second: Statistics) -> Statistics:
    """Of the tokens of both. Raises ValueError where only one of them has a stream error."""
    stream = None
    if first.stream is not None and second.stream is not None:
        stream = first.stream + second.stream
    elif first.stream is not second.stream:
        raise ValueError("Statistics with and without a stream error are of different matrices.")
    return Statistics(first.hessian + second.hessian, first.drift + second.drift, first.tokens + second.tokens, stream)


class Sums:
    """The statistics of tokens that come a few at a time, as an expert's do. A product for each few would cost as much
    as one for hundreds of rows: most of it is adding (in, in) numbers to others.

    At least one call of `add` comes before `total`.
    """

    def __init__(self) -> None:
        self._inputs: list[mx.array] = []
        self._full: list[mx.array] = []
        self._streams: list[mx.array] = []
        self._sum: Statistics | None = None

    @property
    def arrays(self) -> list[mx.array]:
        """To be evaluated with what was added, or all that was read for it stays in memory."""
        done = self._sum
        sums = [] if done is None else [done.hessian, done.drift, *([] if done.stream is None else [done.stream])]
        return [*self._inputs, *self._full, *self._streams, *sums]

    def add(self, inputs: mx.array, full: mx.array, stream: mx.array | None = None) -> None:
        """As `measure` has them; all with a stream, or none."""
        self._inputs.append(inputs)
        self._full.append(full)
        if stream is not None:
            self._streams.append(stream)
        if sum(map(len, self._inputs)) >= _TOGETHER:
            self._settle()

    def total(self) -> Statistics:
        if self._inputs:
            self._settle()
        assert self._sum is not None
        return self._sum

    def _settle(self) -> None:
        stream = mx.concatenate(self._streams) if self._streams else None
        one = measure(mx.concatenate(self._inputs), mx.concatenate(self._full), stream)
        self._sum = one if self._sum is None else merge(self._sum, one)
        self._inputs, self._full, self._streams = [], [], []


def shrunk(expert: Statistics, pool: Statistics, strength: float) -> Statistics:
    """`expert` drawn toward its layer: as if `strength` tokens a dimension of the pool's kind were added to its own.

    The scale stays that of the expert's own tokens, so that many tokens leave it as it is. An expert without tokens has
    the pool's sums for one token. What an earlier layer has changed is much the same for all experts, so the drift
    follows the Hessian; a stream error stays the expert's own.
    """
    if pool.tokens == 0:
        return expert
    prior = strength * expert.columns
    share = prior / (prior + expert.tokens) if expert.tokens else 1.0
    scale = share * max(expert.tokens, 1) / pool.tokens
    return replace(
        expert,
        hessian=(1 - share) * expert.hessian + scale * pool.hessian,
        drift=(1 - share) * expert.drift + scale * pool.drift,
    )
