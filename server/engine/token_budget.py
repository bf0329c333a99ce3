"""How much of a prompt to read before the next token of those who are answering. Pure: told times, asked for sizes.

While anything decodes, a slice of prefill is as large as measured speed says fits between two tokens
(`stall_target_s`), and after each slice decoding gets a share of the time: otherwise streams would run at one token a
slice for as long as a prompt is read. With nothing decoding, a slice may take longer, but not so long that a cancel
or a newcomer waits.
"""

from __future__ import annotations

# A prompt must get on: on machines where a decode step alone takes the whole target, this much is read all the same.
SMALLEST_SLICE = 16
# A slice with nothing decoding, in stall targets.
_ALONE = 2
# Of the time that prefill and decode spend together, at least this much is decode's.
_DECODE_SHARE = 0.25
# Weight of the newest measurement.
_NEWEST = 0.3
# Slices beside decoding grow by steps: their first estimate is that of large slices alone, which cost less per token.
_GROWTH = 4


class TokenBudget:
    """`largest` bounds a slice in tokens. One `turn` is one decode step (if any) and one slice (if any)."""

    def __init__(self, stall_target_s: float, largest: int) -> None:
        self._target = stall_target_s
        self._largest = largest
        self._decode_s = 0.0
        # Seconds per prompt token, in large slices alone and in small ones between decode steps.
        self._token_s: dict[bool, float] = {}
        self._last_beside = SMALLEST_SLICE
        # Seconds of decoding that are due before the next slice.
        self._due = 0.0

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Of large slices; None until one was measured."""
        seconds = self._token_s.get(False) or self._token_s.get(True)
        return 1 / seconds if seconds else None

    def slice_tokens(self, *, decoding: bool) -> int:
        """Prompt tokens to read in this turn; 0 when decoding comes first."""
        if decoding and (self._due > 0 or not self._decode_s):
            return 0
        seconds = self._token_s.get(decoding) or self._token_s.get(not decoding)
        if seconds is None:
            return min(SMALLEST_SLICE, self._largest)
        if decoding:
            room = max(0.0, self._target - self._decode_s)
            fitting = min(int(room / seconds), _GROWTH * self._last_beside)
        else:
            fitting = int(_ALONE * self._target / seconds)
        return min(max(fitting, SMALLEST_SLICE), self._largest)

    def turn(self, seconds: float, *, prefilled: int, decoding: bool) -> None:
        """A turn took `seconds`, read `prefilled` prompt tokens, and decoded if `decoding`."""
        if not prefilled:
            if decoding:
                self._decode_s = _blend(self._decode_s, seconds)
                self._due -= seconds
            return
        slice_s = max(seconds - self._decode_s, seconds / 10) if decoding else seconds
        self._token_s[decoding] = _blend(self._token_s.get(decoding, 0.0), slice_s / prefilled)
        if decoding:
            self._last_beside = max(prefilled, SMALLEST_SLICE)
        # The decode step of this very turn counts.
        self._due = slice_s * _DECODE_SHARE / (1 - _DECODE_SHARE) - self._decode_s if decoding else 0.0


def _blend(old: float, new: float) -> float:
    return new if not old else old + _NEWEST * (new - old)
