"""How many prompt tokens to read before the next decode step. Pure: times in, sizes out; engine process.

While anything decodes, a prefill chunk is as large as measured speed says fits between two tokens (`stall_target_s`),
and after each chunk decoding gets a share of the time: otherwise streams would advance one token per chunk for as long
as a prompt is read. With nothing decoding, a chunk may take longer, but not so long that a cancel or a new request
waits.
"""

from __future__ import annotations

# A prompt must make progress: where a decode step alone takes the whole target, this much is read nevertheless.
MIN_CHUNK_TOKENS = 16
# How long a chunk may take with nothing decoding, in stall targets.
_TARGETS_WHEN_IDLE = 2
# Decoding gets at least this fraction of the time that prefill and decoding take together.
_DECODE_SHARE = 0.25
# Weight of the newest measurement in the moving averages.
_NEWEST = 0.3
# Chunks beside decoding grow by steps: their first estimate is that of large chunks alone, which cost less per token.
_MAX_GROWTH = 4


class TokenBudget:
    """`max_chunk` bounds a chunk in tokens. A step is at most one decode step and at most one chunk."""

    def __init__(self, stall_target_s: float, max_chunk: int) -> None:
        self._target_s = stall_target_s
        self._max_chunk = max_chunk
        self._decode_s = 0.0
        # Seconds per prompt token: True, in small chunks beside decoding; False, in large ones with nothing decoding.
        self._token_s: dict[bool, float] = {}
        self._last_beside_decode = MIN_CHUNK_TOKENS
        # Seconds of decoding that are due before the next chunk.
        self._decode_due_s = 0.0

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Of large chunks; None until a chunk was measured."""
        seconds = self._token_s.get(False) or self._token_s.get(True)
        return 1 / seconds if seconds else None

    def chunk_tokens(self, *, decoding: bool) -> int:
        """Prompt tokens to read in this step; 0 when decoding comes first."""
        if decoding and (self._decode_due_s > 0 or not self._decode_s):
            return 0
        seconds = self._token_s.get(decoding) or self._token_s.get(not decoding)
        if seconds is None:
            return min(MIN_CHUNK_TOKENS, self._max_chunk)
        if decoding:
            available_s = max(0.0, self._target_s - self._decode_s)
            fitting = min(int(available_s / seconds), _MAX_GROWTH * self._last_beside_decode)
        else:
            fitting = int(_TARGETS_WHEN_IDLE * self._target_s / seconds)
        return min(max(fitting, MIN_CHUNK_TOKENS), self._max_chunk)

    def record(self, seconds: float, *, prefilled: int, decoding: bool) -> None:
        """A step took `seconds`, read `prefilled` prompt tokens, and decoded if `decoding`."""
        if not prefilled:
            if decoding:
                self._decode_s = _moving_average(self._decode_s, seconds)
                self._decode_due_s -= seconds
            return
        chunk_s = max(seconds - self._decode_s, seconds / 10) if decoding else seconds
        self._token_s[decoding] = _moving_average(self._token_s.get(decoding, 0.0), chunk_s / prefilled)
        if decoding:
            self._last_beside_decode = max(prefilled, MIN_CHUNK_TOKENS)
        # The decode step of this very step counts.
        self._decode_due_s = chunk_s * _DECODE_SHARE / (1 - _DECODE_SHARE) - self._decode_s if decoding else 0.0


def _moving_average(old: float, new: float) -> float:
    return new if not old else old + _NEWEST * (new - old)
