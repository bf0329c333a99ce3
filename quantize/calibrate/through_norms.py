"""What a matrix must return so that a norm behind it makes up for an error of the stream.

A norm returns g u, u = x / rms(x). To first order a move d of u changes that by g d, if u d = 0: along u itself the
norm takes back whatever it is given. Of all such moves the one with the least |g d - e|^2 + m |d|^2 is

    d = (g e - n u) / (g^2 + m),    n so that u d = 0

With m = 0 a column whose gain is a thousandth of the others' moves a thousand times as far, for next to nothing in the
stream, and the norm makes all others smaller by it: in Gemma 3 that is worse than not to correct the stream at all. So
each token has the m with which the norm, computed, comes nearest.
"""

from __future__ import annotations

import mlx.core as mx

# Of the mean of g^2. Beyond the last next to nothing moves; the first is of gains a ten thousandth of the others'.
_TRIED = tuple(10.0 ** (half / 2) for half in range(-16, 5))


def move_before(given: mx.array, gain: mx.array, error: mx.array) -> mx.array:
    """The move of what a norm is given, (tokens, columns) float32, that adds `error` to what it returns, as far as one
    can: never farther from it than no move. given: x (tokens, columns); gain: g (columns,); error: e (tokens, columns).
    """
    rms = token_rms(given)
    unit = given.astype(mx.float32) / rms
    power, wanted = mx.square(gain), gain * error
    best, least = mx.zeros_like(wanted), mx.square(error).mean(-1, keepdims=True)
    for share in _TRIED:
        worth = 1 / (power + share * power.mean())
        along = (unit * wanted * worth).sum(-1, keepdims=True) / (unit * unit * worth).sum(-1, keepdims=True)
        move = (wanted - along * unit) * worth
        moved = unit + move
        missed = mx.square(gain * (moved / token_rms(moved) - unit) - error).mean(-1, keepdims=True)
        best, least = mx.where(missed < least, move, best), mx.minimum(missed, least)
    return rms * best


def token_rms(given: mx.array) -> mx.array:
    """(..., 1) float32."""
    return mx.sqrt(mx.square(given.astype(mx.float32)).mean(-1, keepdims=True) + 1e-6)
