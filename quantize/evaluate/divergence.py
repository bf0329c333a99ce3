"""How far one model's next-token distributions are from another's, token by token, over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """One number a position, each (positions,).

    kl: KL(reference || candidate) in nats. same_top: 1 where both put the same token first. reference, candidate: the
    log probability that each gives to the token that follows.
    """

    kl: Floats
    same_top: Floats
    reference: Floats
    candidate: Floats

    def __len__(self) -> int:
        return len(self.kl)

    def __getitem__(self, positions: slice) -> TokenFigures:
        return TokenFigures(*(getattr(self, field.name)[positions] for field in fields(self)))


def compare(reference: mx.array, candidate: mx.array, following: mx.array) -> TokenFigures:
    """Logits (positions, vocabulary) of any float dtype, and the token that follows each position, (positions,)."""
    p, q = (_log_softmax(logits) for logits in (reference, candidate))
    # Never below zero but for rounding; an infinite log probability of both adds nothing.
    kl = mx.where(mx.isinf(p), 0, mx.exp(p) * (p - q)).sum(-1)
    same = (p.argmax(-1) == q.argmax(-1)).astype(mx.float32)
    chosen = [mx.take_along_axis(x, following[:, None], -1)[:, 0] for x in (p, q)]
    mx.eval(kl, same, *chosen)
    return TokenFigures(*(np.array(value, dtype=np.float32) for value in (mx.maximum(kl, 0), same, *chosen)))


def joined(parts: Sequence[TokenFigures]) -> TokenFigures:
    names = [field.name for field in fields(TokenFigures)]
    return TokenFigures(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _log_softmax(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
