"""How much of a prompt to read before the next decode step. Pure: times in, sizes out; engine process.

A forward pass over n tokens takes W + n * c seconds: it reads all weights, whatever n is. Chunks small enough to fit
between two tokens of a stream would pay W again and again (on an M1, half of the time), so a pass is large and is cut
the other way, between the model's layers: MLX evaluates as many of them as fit, decoding goes on, and then the next
ones.

While anything decodes, a step takes no longer than `stall_target_s`, and decoding gets a share of the time: otherwise
streams would advance one token per step for as long as a prompt is read. With nothing decoding, a step may take
longer, but not so long that a cancel or a new request waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.linear_cost import LinearCost

# A prompt must make progress, however little memory or time there is.
MIN_CHUNK_TOKENS = 16
# Fewer cost nearly as much where a model has many experts, all of which are read; and so many are read to begin with,
# layer by layer, while nothing is known of the machine.
_FLOOR_TOKENS = 128
# How long a step may take with nothing decoding, in stall targets.
_TARGETS_WHEN_IDLE = 2
# What the engine does besides takes the rest.
_USED_OF_TARGET = 0.95
# Decoding gets at least this fraction of the time that prefill and decoding take together.
_DECODE_SHARE = 0.2
# A layer may take this part of a step: the more tokens the better, and yet a few layers must fit.
_LAYER_SHARE = 0.32
# Weight of the newest measurement in the moving averages.
_NEWEST = 0.3
# A layer of full attention may take so many times what the mean layer does; more than that is a hiccup.
_MOST_UNEVEN = 8.0
# The size of which `prefill_tokens_per_s` tells the speed.
_USUAL_TOKENS = 1024


class TokenBudget:
    """`max_chunk` bounds a pass in tokens. A step is at most one decode step and some layers of a pass."""

    def __init__(self, stall_target_s: float, max_chunk: int) -> None:
        self._target_s = stall_target_s
        self._max_chunk = max_chunk
        self._decode_s = 0.0
        self._pass = LinearCost()
        # What the slowest layer takes, in mean layers.
        self._uneven = 1.0
        # Seconds of decoding that are due before the next chunk.
        self._decode_due_s = 0.0

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """None until a pass was measured."""
        seconds = self._pass.seconds(_USUAL_TOKENS)
        return _USUAL_TOKENS / seconds if seconds else None

    def seconds(self, decode_s: float, *, decoding: bool) -> float:
        """For prefill in this step, whose decoding took `decode_s`; 0 when decoding comes first."""
        if not decoding:
            return _TARGETS_WHEN_IDLE * self._target_s
        if self._decode_due_s > 0 or not self._decode_s:
            return 0.0
        # A prompt must make progress where a decode step alone takes the whole target.
        return max(self._target_s * _USED_OF_TARGET - decode_s, self._target_s / 100)

    def decode_under_way_s(self, decode_s: float) -> float:
        """Of a step whose decoding took `decode_s`, what the next decode step, begun already, takes before prefill."""
        return max(0.0, self._decode_s - decode_s)

    def whole_tokens(self, seconds: float) -> int:
        """Tokens of a pass that is over within `seconds`."""
        fitting = self._pass.units(seconds) if self._pass.known else MIN_CHUNK_TOKENS
        return int(min(max(fitting, MIN_CHUNK_TOKENS), self._max_chunk))

    def pass_tokens(self, seconds: float, layers: int) -> int:
        """Tokens of a pass that is cut between its layers, into pieces of `seconds`."""
        if not self._pass.known:
            return min(_FLOOR_TOKENS, self._max_chunk)
        mean_layers = layers / self._uneven
        fitting = self._pass.units(seconds * _LAYER_SHARE * mean_layers)
        at_least = min(_FLOOR_TOKENS, self._pass.units(seconds * mean_layers))
        return int(min(max(fitting, at_least, MIN_CHUNK_TOKENS), self._max_chunk))

    def next_layers(self, tokens: int, layers: int, left: int, seconds: float) -> int:
        """`left` of the `layers` of a pass over `tokens` are to be evaluated: how many next, in a step that has
        `seconds` left, before looking at the clock again. 0: none of them fits."""
        layer_s = self._pass.seconds(tokens) / layers
        if left * layer_s <= seconds and self._pass.known:
            return left
        if seconds < layer_s * self._uneven:
            return 0
        return max(1, int(seconds / (2 * layer_s))) if layer_s else int(seconds > 0)

    def record_pass(self, tokens: int, pieces: Sequence[tuple[int, float]]) -> None:
        """A pass over `tokens` was evaluated in `pieces`: so many layers, and the seconds that they took."""
        seconds = sum(piece_s for _, piece_s in pieces)
        self._pass.record(tokens, seconds)
        if len(pieces) > 1 and seconds:
            mean_s = seconds / sum(count for count, _ in pieces)
            fastest_s = min(piece_s / count for count, piece_s in pieces)
            # The slowest layer, if the others of its piece are as fast as any.
            slowest_s = max(piece_s - (count - 1) * fastest_s for count, piece_s in pieces)
            uneven = min(max(slowest_s / mean_s, 1.0), _MOST_UNEVEN)
            self._uneven = max(uneven, self._uneven + _NEWEST / 2 * (uneven - self._uneven))

    def record(self, decode_s: float, prefill_s: float, *, decoding: bool) -> None:
        """A step took so many seconds for a decode step, if `decoding`, and for prefill."""
        if not decoding:
            self._decode_due_s = 0.0
        elif not prefill_s:
            self._decode_s = _moving_average(self._decode_s, decode_s)
            self._decode_due_s -= decode_s
        else:
            # The decode step of this very step counts, and the one under way is a part of what prefill seemed to take.
            due_s = (decode_s + prefill_s - self._decode_s) * _DECODE_SHARE / (1 - _DECODE_SHARE) - self._decode_s
            # What decoding had beyond its share counts for the next piece, and not for ever.
            self._decode_due_s = due_s + min(0.0, max(self._decode_due_s, -self._decode_s))


def _moving_average(old: float, new: float) -> float:
    return new if not old else old + _NEWEST * (new - old)
