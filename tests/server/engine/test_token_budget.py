"""The token budget is pure: told how long passes and steps took, asked for the next ones. Machines here are numbers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from server.engine.token_budget import MIN_CHUNK_TOKENS, TokenBudget

TARGET_S = 0.4


@dataclass
class Machine:
    """Seconds of one decode step, of reading all weights once, and of one prompt token. `uneven`: what every sixth
    layer takes, in the others. Below 64 tokens each is as dear as a decode step's. `noise`: by how much times vary."""

    decode_s: float
    sweep_s: float
    token_s: float
    layers: int = 30
    uneven: float = 1.0
    noise: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(3))

    def pass_s(self, tokens: int) -> float:
        sweep = self.sweep_s if tokens >= 64 else self.sweep_s / 16 * max(tokens, 16)
        return sweep + tokens * self.token_s

    def layer_s(self, tokens: int, layer: int) -> float:
        weights = [self.uneven if index % 6 == 5 else 1.0 for index in range(self.layers)]
        share = weights[layer] / sum(weights)
        return self.pass_s(tokens) * share * self.rng.uniform(1 - self.noise, 1 + self.noise)

    def read(self, budget: TokenBudget, prompt: int, *, decoding: bool) -> list[tuple[float, float]]:
        """(seconds of the decode step, of the chunk before it) for each time that tokens come, until the prompt is
        read."""
        steps: list[tuple[float, float]] = []
        under_way: tuple[int, int, list[tuple[int, float]]] | None = None
        if decoding:
            budget.record_decode(self.decode_s)
        while prompt > 0:
            prefill_s = 0.0
            if seconds := budget.seconds(0.0, decoding=decoding):
                if under_way is None:
                    most = budget.pass_tokens(seconds, self.layers)
                    under_way = (-(-prompt // -(-prompt // most)), 0, [])
                tokens, done, pieces = under_way
                seconds = budget.piece_s(seconds, decoding=decoding)
                while done < self.layers:
                    left, left_s = self.layers - done, seconds - prefill_s
                    count = budget.next_layers(tokens, self.layers, left, left_s, pieces, decoding=decoding)
                    if not count and prefill_s:
                        break
                    piece = [
                        self.layer_s(tokens, layer) for layer in range(done, min(done + max(count, 1), self.layers))
                    ]
                    done, prefill_s = done + len(piece), prefill_s + sum(piece)
                    pieces.append((len(piece), sum(piece)))
                under_way = (tokens, done, pieces)
                if done == self.layers:
                    budget.record_pass(tokens, pieces)
                    prompt, under_way = prompt - tokens, None
                budget.record_chunk(prefill_s, decoding=decoding)
            if decoding:
                budget.record_decode(self.decode_s)
            steps.append((self.decode_s if decoding else 0.0, prefill_s))
        return steps


MACS = {
    "M4 Max": Machine(0.010, 0.022, 0.0006),
    "M2 Pro": Machine(0.022, 0.060, 0.0036),
    "M1": Machine(0.060, 0.176, 0.0054),
}
LAPTOP = Machine(decode_s=0.15, sweep_s=0.03, token_s=0.012)


def after_a_chat(machine: Machine) -> TokenBudget:
    """Short turns, their tails, and a longer prompt: what an engine has seen after a while."""
    budget = TokenBudget(TARGET_S, 2048)
    for tokens in (900, 30, 5, 40, 4, 2000, 25, 4, 3, 60, 4, 4, 31, 7):
        machine.read(budget, tokens, decoding=False)
        machine.read(budget, 20, decoding=True)
    return budget


def total(steps: list[tuple[float, float]]) -> float:
    return sum(decode_s + prefill_s for decode_s, prefill_s in steps)


@pytest.mark.parametrize("machine", MACS.values(), ids=list(MACS))
def test_alone_a_long_prompt_takes_what_passes_of_the_largest_size_take(machine: Machine) -> None:
    ideal = machine.pass_s(2000) * 2
    assert total(machine.read(after_a_chat(machine), 4000, decoding=False)) <= 1.02 * ideal


@pytest.mark.parametrize("machine", MACS.values(), ids=list(MACS))
def test_beside_a_stream_it_takes_a_third_more_at_no_larger_gap_than_the_target(machine: Machine) -> None:
    steps = machine.read(after_a_chat(machine), 4000, decoding=True)
    assert max(map(sum, steps)) <= TARGET_S
    assert total(steps) <= 1.35 * machine.pass_s(2000) * 2


@pytest.mark.parametrize("uneven", [1.0, 5.0])
@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("machine", [*MACS.values(), LAPTOP])
def test_no_running_stream_waits_longer_than_the_target(machine: Machine, noise: float, uneven: float) -> None:
    machine = Machine(
        machine.decode_s, machine.sweep_s, machine.token_s, noise=noise, uneven=uneven, rng=random.Random(7)
    )
    budget = after_a_chat(machine)
    machine.read(budget, 3000, decoding=True)
    steps = machine.read(budget, 8000, decoding=True)
    assert max(map(sum, steps)) <= TARGET_S * (1.1 if noise else 1.05 if uneven > 1 else 1.0)


@pytest.mark.parametrize("machine", [*MACS.values(), LAPTOP])
def test_the_very_first_prompt_beside_a_stream_does_not_stall_it_either(machine: Machine) -> None:
    budget = TokenBudget(TARGET_S, 2048)
    assert max(map(sum, machine.read(budget, 8000, decoding=True))) <= TARGET_S * 1.1


@pytest.mark.parametrize("machine", MACS.values(), ids=list(MACS))
def test_a_machine_that_became_three_times_slower_is_believed_within_a_prompt(machine: Machine) -> None:
    budget = after_a_chat(machine)
    slow = Machine(3 * machine.decode_s, 3 * machine.sweep_s, 3 * machine.token_s)
    slow.read(budget, 4000, decoding=True)
    slow.read(budget, 4000, decoding=True)
    assert max(map(sum, slow.read(budget, 4000, decoding=True))) <= TARGET_S * 1.05


def test_decoding_gets_its_share_between_pieces() -> None:
    machine = MACS["M2 Pro"]
    steps = machine.read(after_a_chat(machine), 20_000, decoding=True)
    assert len(steps) * machine.decode_s / total(steps) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("machine", [*MACS.values(), LAPTOP])
def test_alone_a_step_is_so_short_that_who_leaves_is_heard_at_once(machine: Machine) -> None:
    """A layer of the largest pass may take more than half of the target."""
    budget = after_a_chat(machine)
    layer_s = machine.pass_s(budget.pass_tokens(budget.seconds(0.0, decoding=False), machine.layers)) / machine.layers
    steps = machine.read(budget, 20_000, decoding=False)
    assert max(map(sum, steps)) <= max(TARGET_S / 2, 1.1 * layer_s)


@pytest.mark.parametrize("machine", MACS.values(), ids=list(MACS))
def test_the_speed_that_is_told_is_that_of_usual_passes(machine: Machine) -> None:
    budget = after_a_chat(machine)
    assert budget.prefill_tokens_per_s == pytest.approx(1024 / machine.pass_s(1024), rel=0.15)


@pytest.mark.parametrize("machine", MACS.values(), ids=list(MACS))
def test_a_pass_is_large_enough_for_its_weights(machine: Machine) -> None:
    budget = after_a_chat(machine)
    assert budget.pass_tokens(0.3, machine.layers) >= 128


def test_a_pass_never_exceeds_the_largest() -> None:
    budget = TokenBudget(10, 64)
    assert budget.pass_tokens(10, 30) == 64
    MACS["M4 Max"].read(budget, 640, decoding=False)
    assert budget.pass_tokens(10, 30) == budget.whole_tokens(10) == 64


def test_a_prompt_makes_progress_where_decoding_alone_takes_the_whole_target() -> None:
    budget = TokenBudget(0.1, 2048)
    steps = LAPTOP.read(budget, 100, decoding=True)
    assert sum(prefill_s for _, prefill_s in steps) > 0
    assert budget.whole_tokens(0.001) == MIN_CHUNK_TOKENS


def test_a_prompt_is_not_starved_where_one_decode_step_takes_many_targets() -> None:
    crowded = Machine(decode_s=1.2, sweep_s=0.3, token_s=0.012)
    assert len(crowded.read(TokenBudget(TARGET_S, 2048), 400, decoding=True)) <= 20


def test_the_time_since_the_last_tokens_is_part_of_the_gap() -> None:
    budget = TokenBudget(TARGET_S, 2048)
    budget.record_decode(0.1)
    whole_s = budget.seconds(0.0, decoding=True)
    assert whole_s == pytest.approx(0.95 * TARGET_S - 0.1)
    assert budget.seconds(0.1, decoding=True) == pytest.approx(whole_s - 0.1)
    # So little is left that the streams go on first.
    assert budget.seconds(0.2, decoding=True) == 0


def test_who_has_just_been_read_draws_a_token_before_another_prompt_is() -> None:
    budget = TokenBudget(TARGET_S, 2048)
    budget.record_decode(0.1)
    budget.record_chunk(0.7, decoding=False)
    assert budget.seconds(0.0, decoding=True) == 0
    budget.record_decode(0.1)
    assert budget.seconds(0.0, decoding=True) > 0


def test_small_passes_that_took_alike_do_not_make_large_ones_free() -> None:
    """The first pass touches the weights for the first time: the line through it and the next one falls."""
    machine = Machine(decode_s=0.15, sweep_s=0.1, token_s=0.0045, layers=18)
    budget = TokenBudget(TARGET_S, 2048)
    budget.record_pass(18, [(18, 0.32)])
    budget.record_pass(26, [(18, 0.146)])
    assert max(map(sum, machine.read(budget, 1217, decoding=True))) <= TARGET_S * 1.1
    assert budget.whole_tokens(0.1) <= 64


def test_short_prompts_share_a_pass_before_anything_tells_what_that_takes() -> None:
    budget = TokenBudget(TARGET_S, 2048)
    budget.record_pass(18, [(18, 0.32)])
    assert budget.group_tokens(0.8, decoding=False) >= 4 * 40
    assert budget.group_tokens(0.2, decoding=True) < 40
