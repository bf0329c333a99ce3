"""What is asked of a matrix before a norm, so that the norm makes up for an error of the stream."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from quantize.calibrate.through_norms import move_before, token_rms

TOKENS, COLUMNS = 8, 64
Drawn = tuple[mx.array, mx.array, mx.array]


def drawn(spread: float, error: float, seed: int = 0) -> Drawn:
    """What a norm is given, at a hundred times the size of its unit; gains over `spread` decades; an error of the
    stream, `error` of what the norm returns."""
    rng = np.random.default_rng(seed)
    given = 100 * rng.normal(size=(TOKENS, COLUMNS))
    gain = 10 ** (spread * rng.uniform(-0.5, 0.5, size=COLUMNS))
    size = error * np.sqrt(np.mean(gain**2))
    given, gain, error_of = (
        mx.array(one.astype(np.float32)) for one in (given, gain, size * rng.normal(size=(TOKENS, COLUMNS)))
    )
    return given, gain, error_of


def left(given: mx.array, gain: mx.array, error: mx.array, move: mx.array) -> mx.array:
    """Of the error, token by token, once the norm has returned."""
    before, after = (gain * one / token_rms(one) for one in (given, given + move))
    return mx.linalg.norm(after - before - error, axis=-1) / mx.linalg.norm(error, axis=-1)


def test_a_small_error_is_the_least_squares_problem_on_what_keeps_the_rms() -> None:
    given, gain, error = drawn(spread=0.5, error=0.001)
    move = move_before(given, gain, error) / token_rms(given)
    unit = np.array(given / token_rms(given), dtype=np.float64)
    for token in range(TOKENS):
        # The columns of the complete QR behind the first span what is perpendicular to u.
        across = np.linalg.qr(unit[token][:, None], mode="complete")[0][:, 1:]
        moved = np.linalg.lstsq(np.array(gain)[:, None] * across, np.array(error)[token], rcond=None)[0]
        found, best = np.array(move)[token], across @ moved
        assert np.linalg.norm(found - best) < 0.02 * np.linalg.norm(best)


def test_a_small_error_is_made_up_for_where_a_norm_can() -> None:
    given, gain, _ = drawn(spread=1, error=0)
    unit = given / token_rms(given)
    wanted = 0.01 * mx.random.normal((TOKENS, COLUMNS), key=mx.random.key(1))
    wanted = wanted - unit * (wanted * unit).mean(-1, keepdims=True)
    error = gain * wanted
    assert float(left(given, gain, error, move_before(given, gain, error)).max()) < 0.02


@pytest.mark.parametrize("error", [0.03, 0.3, 3.0])
def test_columns_with_small_gains_take_little_from_the_others(error: float) -> None:
    """Gemma 3's gains of one norm lie as far apart; rms / gain of the error makes it larger."""
    given, gain, wanted = drawn(spread=6, error=error)
    move = move_before(given, gain, wanted)
    first_order = wanted * token_rms(given) / gain
    assert float(left(given, gain, wanted, first_order).mean()) > 1
    assert float(left(given, gain, wanted, move).max()) < 1


def test_nothing_is_asked_where_nothing_is_missing() -> None:
    given, gain, error = drawn(spread=3, error=0)
    assert float(mx.abs(move_before(given, gain, error)).max()) == 0


def test_what_only_scales_a_token_is_not_asked_for() -> None:
    """A norm takes it back."""
    given, gain, _ = drawn(spread=0, error=0)
    move = move_before(given, gain, 0.1 * gain * given / token_rms(given))
    assert float((token_rms(move) / token_rms(given)).max()) < 1e-3
