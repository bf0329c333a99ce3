"""The token budget is pure: told how long steps took, asked for the next chunk. A machine here is two numbers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from server.engine.token_budget import MIN_CHUNK_TOKENS, TokenBudget


@dataclass
class Machine:
    """Seconds of one decode step, and of one prompt token."""

    decode_s: float
    token_s: float

    def steps(self, budget: TokenBudget, prompt: int, *, decoding: bool) -> list[tuple[int, float]]:
        """(chunk, seconds) of each step until the prompt is read."""
        done: list[tuple[int, float]] = []
        while prompt > 0:
            size = min(prompt, budget.chunk_tokens(decoding=decoding))
            seconds = self.decode_s * decoding + size * self.token_s
            budget.record(seconds, prefilled=size, decoding=decoding)
            done.append((size, seconds))
            prompt -= size
        return done


MAC = Machine(decode_s=0.013, token_s=0.0015)
LAPTOP = Machine(decode_s=0.15, token_s=0.012)


@pytest.mark.parametrize("machine", [MAC, LAPTOP])
def test_no_running_stream_waits_longer_than_the_target(machine: Machine) -> None:
    budget = TokenBudget(0.5, 2048)
    machine.steps(budget, 300, decoding=False)
    gaps = [seconds for _, seconds in machine.steps(budget, 8000, decoding=True)]
    assert max(gaps) <= 0.5 * 1.05


def test_chunks_use_the_gap_that_the_target_leaves() -> None:
    budget = TokenBudget(0.5, 2048)
    chunks = [size for size, _ in MAC.steps(budget, 8000, decoding=True)]
    assert max(chunks) * MAC.token_s > 0.5 * 0.8


def test_decoding_gets_its_share_between_chunks() -> None:
    budget = TokenBudget(0.25, 2048)
    steps = MAC.steps(budget, 20_000, decoding=True)
    decode_s = MAC.decode_s * len(steps)
    assert decode_s / sum(seconds for _, seconds in steps) == pytest.approx(0.25, abs=0.05)


def test_alone_a_prompt_is_read_in_large_chunks_that_a_newcomer_can_wait_for() -> None:
    budget = TokenBudget(0.25, 2048)
    steps = MAC.steps(budget, 20_000, decoding=False)
    assert max(size for size, _ in steps) > 300
    assert max(seconds for _, seconds in steps) <= 0.5 * 1.05


def test_a_chunk_never_exceeds_the_largest() -> None:
    budget = TokenBudget(10, 64)
    assert {size for size, _ in MAC.steps(budget, 640, decoding=False)} <= {MIN_CHUNK_TOKENS, 64, 48}


def test_a_prompt_makes_progress_where_decoding_alone_takes_the_whole_target() -> None:
    budget = TokenBudget(0.1, 2048)
    sizes = [size for size, _ in LAPTOP.steps(budget, 100, decoding=True) if size]
    assert sum(sizes) == 100
    assert max(sizes) == MIN_CHUNK_TOKENS
