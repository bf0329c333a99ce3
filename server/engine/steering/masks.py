"""The logits of a batch without what its answers may not draw. Runs in the engine process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par

from server.engine.steering.bits import words
from server.engine.steering.steering import MASK_S, Steering


class Masks:
    """Rules out what the steerings of a batch do.

    They are computed while the forward pass runs: it needs the tokens of the step before as arrays, the masks need them
    as numbers, and those are there when the pass begins. Rows without a steering pay nothing.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._executor: LLExecutor | None = None

    def apply(self, logits: mx.array, steerings: Sequence[Steering | None], drawn: mx.array, new: int) -> mx.array:
        """`logits`, (rows, width), with -inf where a steering rules a token out. `drawn`, (rows,), are the tokens that
        the pass reads; the last `new` rows have drawn none yet."""
        if not any(steerings):
            return logits
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
        told = steerings[: len(steerings) - new]
        if any(told):
            tokens: Any = drawn.tolist()
            for steering, token in zip(told, tokens, strict=False):
                if steering is not None:
                    steering.advance(token)
        mask = self._mask(steerings, logits.shape[-1])
        return logits if mask is None else mx.where(mask, logits, -mx.inf)

    def _mask(self, steerings: Sequence[Steering | None], width: int) -> mx.array | None:
        """True where a token may be drawn, shape (rows, width); None when all may be."""
        restricted = [(i, steering) for i, steering in enumerate(steerings) if steering and steering.restricts]
        if not restricted:
            return None
        bits = np.full((len(steerings), words(self._vocab_size)), -1, np.int32)
        self._fill([(steering, matcher, i) for i, steering in restricted if (matcher := steering.matcher)], bits)
        for i, steering in restricted:
            steering.rule_out(bits[i])
        # Logits can be wider than what the embeddings of the weights have; those tokens are not drawn.
        mask = np.zeros((len(steerings), width), np.bool_)
        known = min(width, self._vocab_size)
        mask[:, :known] = np.unpackbits(bits.view(np.uint8), axis=1, count=known, bitorder="little")
        return mx.array(mask)

    def _fill(self, rows: list[tuple[Steering, LLMatcher, int]], bits: np.ndarray[Any, np.dtype[np.int32]]) -> None:
        """All at once, unless one of them is known to be slow: then one by one, to know which pays."""
        if len(rows) > 1 and not any(steering.slow for steering, _, _ in rows):
            if self._executor is None:
                self._executor = LLExecutor()
            began = time.monotonic()
            fill_next_token_bitmask_par(self._executor, [(matcher, i) for _, matcher, i in rows], bits)
            if time.monotonic() - began > MASK_S:
                for steering, _, _ in rows:
                    steering.slow = True
            return
        for steering, matcher, i in rows:
            # Of this thread: what others on the processor take is not the grammar's.
            began = time.thread_time()
            fill_next_token_bitmask(matcher, bits, i)
            steering.pay(time.thread_time() - began)
