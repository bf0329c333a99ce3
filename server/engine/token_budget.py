"""How much of a prompt to read before the next decode step. Pure: times in, sizes out; engine process.

A forward pass over n tokens takes W + n * c seconds: it reads all weights, whatever n is. Chunks small enough to fit
between two tokens of a stream would pay W again and again (on an M1, half of the time), so a pass is large and is cut
the other way, between the model's layers: MLX evaluates as many of them as fit, decoding goes on, and then the next
ones.

While anything decodes, a step takes no longer than `stall_target_s`, and decoding gets a share of the time: otherwise
streams would advance one token per step for as long as a prompt is read. With nothing decoding, a pass may be larger,
but a step is so short that neither who leaves nor who comes is heard late.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.linear_cost import LinearCost

# A prompt must make progress, however little memory or time there is.
MIN_CHUNK_TOKENS = 16
# Fewer cost nearly as much where a model has many experts, all of which are read; and so many are read to begin with,
# layer by layer, while nothing is known of the machine.
_FLOOR_TOKENS = 128
# Smaller passes may cost another price by the token, that of experts whose tokens are not sorted: see
# `compat.sorted_by_expert`.
_CLIFF_TOKENS = 64
# A pass of so many times the largest one is foretold by it; a larger one is no larger than so many times that.
_SURE = 1.5
_GROWTH = 4
# With nothing decoding, a pass over several short prompts may take so many times what a step may: each of them is
# answered sooner than if some waited for a pass of their own. Before anything tells what that takes, it has so many
# tokens.
_LONGER_TOGETHER = 1.5
_UNTRIED_TOKENS = 256
# With nothing decoding, in stall targets: how long a step might take, for the size of a pass, and how long it does when
# the pass can be cut. On Metal each cut costs about a millisecond.
_TARGETS_WHEN_IDLE = 2
_PIECE_WHEN_IDLE = 0.5
# What the engine does besides takes the rest.
_USED_OF_TARGET = 0.95
# Decoding gets at least this fraction of the time that prefill and decoding take together.
_DECODE_SHARE = 0.2
# Where more than this part of the time for a chunk went by since the last tokens, decoding comes first.
_MOST_SPENT = 0.5
_INSTANT_S = 1e-9
# A layer may take this part of a step: the more tokens the better, and yet a few layers must fit.
_LAYER_SHARE = 0.32
# Weight of the newest measurement in the moving averages.
_NEWEST = 0.3
# A layer of full attention may take so many times what the mean layer does; more than that is a hiccup.
_MOST_UNEVEN = 8.0
# The size of which `prefill_tokens_per_s` tells the speed.
_USUAL_TOKENS = 1024


class TokenBudget:
    """`max_chunk` bounds a pass in tokens. A chunk is some layers of a pass, and a decode step follows it."""

    def __init__(self, stall_target_s: float, max_chunk: int) -> None:
        self._target_s = stall_target_s
        self._max_chunk = max_chunk
        self._decode_s = 0.0
        self._pass = LinearCost()
        # What the slowest layer takes, in mean layers.
        self._uneven = 1.0
        # The tokens of the largest pass.
        self._largest = 0
        # Seconds of decoding that are due before the next chunk.
        self._decode_due_s = 0.0

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """None until a pass was measured."""
        seconds = self._pass.seconds(_USUAL_TOKENS)
        return _USUAL_TOKENS / seconds if seconds else None

    def seconds(self, since_s: float, *, decoding: bool) -> float:
        """For a chunk of prefill, when tokens were drawn `since_s` ago; 0 when decoding comes first. What the streams
        notice is the time from those tokens to the next ones."""
        if not decoding:
            return _TARGETS_WHEN_IDLE * self._target_s
        if self._decode_due_s > 0 or not self._decode_s:
            return 0.0
        most_s = max(self._target_s * _USED_OF_TARGET - self._decode_s, self._least_s)
        return most_s - since_s if since_s < most_s * _MOST_SPENT else 0.0

    def piece_s(self, seconds: float, *, decoding: bool) -> float:
        """Of those `seconds`, for some layers of a pass."""
        return seconds if decoding else min(seconds, self._target_s * _PIECE_WHEN_IDLE)

    @property
    def decodes_again(self) -> bool:
        """Whether decoding gets more than one step before the next chunk."""
        return self._decode_due_s > self._decode_s

    @property
    def _least_s(self) -> float:
        """A prompt must make progress where decoding alone takes the whole target, and more where it takes longer."""
        return max(self._target_s / 100, self._decode_s - self._target_s)

    def whole_tokens(self, seconds: float) -> int:
        """Tokens of a pass that is over within `seconds`."""
        fitting = self._pass.units(seconds) if self._pass.known else MIN_CHUNK_TOKENS
        return int(min(max(fitting, MIN_CHUNK_TOKENS), self._max_chunk))

    def group_tokens(self, seconds: float, *, decoding: bool) -> int:
        """Tokens, padding counted, of a pass over several prompts, which cannot be cut."""
        if decoding:
            return self.whole_tokens(seconds)
        fitting = self.whole_tokens(seconds * _LONGER_TOGETHER)
        return fitting if self._largest >= _CLIFF_TOKENS else max(fitting, min(_UNTRIED_TOKENS, self._max_chunk))

    def pass_tokens(self, seconds: float, layers: int) -> int:
        """Tokens of a pass that is cut between its layers, into pieces of `seconds`."""
        if not self._pass.known:
            return min(_FLOOR_TOKENS, self._max_chunk)
        mean_layers = layers / self._uneven
        fitting = self._pass.units(seconds * _LAYER_SHARE * mean_layers)
        at_least = min(_FLOOR_TOKENS, self._pass.units(seconds * mean_layers))
        most = min(self._max_chunk, max(_FLOOR_TOKENS, _GROWTH * self._largest))
        return int(min(max(fitting, at_least, MIN_CHUNK_TOKENS), most))

    def next_layers(
        self,
        tokens: int,
        layers: int,
        left: int,
        seconds: float,
        pieces: Sequence[tuple[int, float]] = (),
        *,
        decoding: bool = True,
    ) -> int:
        """`left` of the `layers` of a pass over `tokens` are to be evaluated, the others were in `pieces`: how many
        next, in a step that has `seconds` left, before looking at the clock again, which is done often while others are
        `decoding`. 0: none of them fits."""
        layer_s = self.layer_s(tokens, layers, pieces)
        # A pass of a size that was never seen may take something else than the line says.
        is_sure = self._pass.known and (bool(pieces) or tokens <= _SURE * self._largest)
        # Of the last layers more may be slow ones than of all.
        more_s = (self._uneven - 1) * layer_s if left < layers else 0.0
        if left * layer_s + more_s <= seconds and is_sure:
            return left
        if seconds < layer_s * self._uneven:
            return 0
        return min(left, max(1, int(seconds / (layer_s * (2 if decoding else 1))))) if layer_s else int(seconds > 0)

    def layer_s(self, tokens: int, layers: int, pieces: Sequence[tuple[int, float]]) -> float:
        """Seconds of a layer of a pass, on average: what is known of this very pass counts, where it is slower than
        expected."""
        expected_s = self._pass_s(tokens) / layers
        done = sum(count for count, _ in pieces)
        return max(expected_s, sum(piece_s for _, piece_s in pieces) / done) if done else expected_s

    def _pass_s(self, tokens: int) -> float:
        """By the line, and in proportion at least where it leads far: that of small passes may have no slope at all."""
        by_line = self._pass.seconds(tokens)
        if not self._largest or tokens <= _SURE * self._largest:
            return by_line
        return max(by_line, self._pass.seconds(self._largest) * tokens / self._largest)

    def record_pass(self, tokens: int, pieces: Sequence[tuple[int, float]]) -> None:
        """A pass over `tokens` was evaluated in `pieces`: so many layers, and the seconds that they took."""
        seconds = sum(piece_s for _, piece_s in pieces)
        self._largest = max(self._largest, tokens)
        if tokens >= _CLIFF_TOKENS or self._largest < _CLIFF_TOKENS:
            self._pass.record(tokens, seconds)
        # A small pass is mostly what is around its layers, which does not say how these differ.
        if len(pieces) > 1 and seconds and tokens >= _CLIFF_TOKENS:
            mean_s = seconds / sum(count for count, _ in pieces)
            # Not the fastest piece: that is a matter of luck, and what it lacks would count for each layer of another.
            fast_s = sorted(piece_s / count for count, piece_s in pieces)[len(pieces) // 4]
            # The slowest layer, if the others of its piece are as fast as those.
            slowest_s = max(piece_s - (count - 1) * fast_s for count, piece_s in pieces)
            uneven = min(max(slowest_s / mean_s, 1.0), _MOST_UNEVEN)
            self._uneven = max(uneven, self._uneven + _NEWEST / 2 * (uneven - self._uneven))

    def record_chunk(self, seconds: float, *, decoding: bool) -> None:
        """A chunk of prefill took so long. A decode step comes before the next one, be it only of who was just read."""
        due_s = seconds * _DECODE_SHARE / (1 - _DECODE_SHARE) if decoding else 0.0
        # What decoding had beyond its share counts for the next chunk, and not for ever.
        had_s = min(max(-self._decode_due_s, 0.0), self._decode_s) if decoding else 0.0
        self._decode_due_s = max(due_s - had_s, _INSTANT_S)

    def record_decode(self, seconds: float) -> None:
        """A decode step took so long, from its beginning to its tokens."""
        self._decode_s = _moving_average(self._decode_s, seconds)
        self._decode_due_s -= self._decode_s


def _moving_average(old: float, new: float) -> float:
    return new if not old else old + _NEWEST * (new - old)
