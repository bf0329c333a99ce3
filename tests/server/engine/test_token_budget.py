"""The pace is pure: told how long turns took, asked for the next slice. A machine here is two numbers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from server.engine.token_budget import SMALLEST_SLICE, TokenBudget


@dataclass
class Machine:
    """Seconds of one decode step, and of one prompt token."""

    decode_s: float
    token_s: float

    def turns(self, pace: TokenBudget, prompt: int, *, decoding: bool) -> list[tuple[int, float]]:
        """(slice, seconds) of each turn until the prompt is read."""
        done: list[tuple[int, float]] = []
        while prompt > 0:
            size = min(prompt, pace.slice_tokens(decoding=decoding))
            seconds = self.decode_s * decoding + size * self.token_s
            pace.turn(seconds, prefilled=size, decoding=decoding)
            done.append((size, seconds))
            prompt -= size
        return done


MAC = Machine(decode_s=0.013, token_s=0.0015)
LAPTOP = Machine(decode_s=0.15, token_s=0.012)


@pytest.mark.parametrize("machine", [MAC, LAPTOP])
def test_no_running_stream_waits_longer_than_the_target(machine: Machine) -> None:
    pace = TokenBudget(0.5, 2048)
    machine.turns(pace, 300, decoding=False)
    gaps = [seconds for _, seconds in machine.turns(pace, 8000, decoding=True)]
    assert max(gaps) <= 0.5 * 1.05


def test_slices_use_the_gap_that_the_target_leaves() -> None:
    pace = TokenBudget(0.5, 2048)
    slices = [size for size, _ in MAC.turns(pace, 8000, decoding=True)]
    assert max(slices) * MAC.token_s > 0.5 * 0.8


def test_decoding_gets_its_share_between_slices() -> None:
    pace = TokenBudget(0.25, 2048)
    turns = MAC.turns(pace, 20_000, decoding=True)
    decode_s = MAC.decode_s * len(turns)
    assert decode_s / sum(seconds for _, seconds in turns) == pytest.approx(0.25, abs=0.05)


def test_alone_a_prompt_is_read_in_large_slices_that_a_newcomer_can_wait_for() -> None:
    pace = TokenBudget(0.25, 2048)
    turns = MAC.turns(pace, 20_000, decoding=False)
    assert max(size for size, _ in turns) > 300
    assert max(seconds for _, seconds in turns) <= 0.5 * 1.05


def test_a_slice_never_exceeds_the_largest() -> None:
    pace = TokenBudget(10, 64)
    assert {size for size, _ in MAC.turns(pace, 640, decoding=False)} <= {SMALLEST_SLICE, 64, 48}


def test_a_prompt_gets_on_where_decoding_alone_takes_the_whole_target() -> None:
    pace = TokenBudget(0.1, 2048)
    sizes = [size for size, _ in LAPTOP.turns(pace, 100, decoding=True) if size]
    assert sum(sizes) == 100
    assert max(sizes) == SMALLEST_SLICE
