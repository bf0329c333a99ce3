"""The scheduler is pure: requests in, ids out."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from server.engine.scheduler import PrefillScheduler, Scheduler
from server.engine_client.protocol import Generate, Sampling


def request(id: int, client: str = "") -> Generate:
    return Generate(id=id, prompt=[1], max_tokens=1, stop_tokens=[], sampling=Sampling(seed=0), client=client)


def admitted(scheduler: Scheduler) -> list[int]:
    return [r.id for r in scheduler.admit()]


def test_requests_start_in_order_of_arrival_until_the_slots_are_taken() -> None:
    scheduler = Scheduler(slots=2)
    for id in (7, 3, 9):
        scheduler.add(request(id))
    assert admitted(scheduler) == [7, 3]
    assert admitted(scheduler) == []
    assert (scheduler.running, scheduler.waiting) == ({7, 3}, 1)


def test_a_slot_that_is_given_back_goes_to_the_one_that_waited_longest() -> None:
    scheduler = Scheduler(slots=1)
    for id in (1, 2, 3):
        scheduler.add(request(id))
    admitted(scheduler)
    assert scheduler.release(1)
    assert admitted(scheduler) == [2]


def test_a_request_that_leaves_the_queue_held_no_slot() -> None:
    scheduler = Scheduler(slots=1)
    for id in (1, 2, 3):
        scheduler.add(request(id))
    admitted(scheduler)
    assert not scheduler.release(2)
    assert not scheduler.release(99)
    assert (scheduler.running, scheduler.waiting) == ({1}, 1)


def test_clients_share_slots_however_many_requests_each_sends() -> None:
    scheduler = Scheduler(slots=2)
    for id in range(10):
        scheduler.add(request(id, "greedy"))
    scheduler.add(request(100, "modest"))
    assert admitted(scheduler) == [0, 100]
    scheduler.release(100)
    scheduler.add(request(101, "modest"))
    assert admitted(scheduler) == [101]


def test_clients_with_as_many_slots_take_turns() -> None:
    scheduler = Scheduler(slots=1)
    for id, client in enumerate("aaabbb"):
        scheduler.add(request(id, client))
    order = []
    for _ in range(6):
        [id] = admitted(scheduler)
        order.append(id)
        scheduler.release(id)
    assert order == [0, 3, 1, 4, 2, 5]


def test_what_does_not_fit_waits_and_is_not_overtaken() -> None:
    scheduler = Scheduler(slots=4)
    for id in (1, 2, 3):
        scheduler.add(request(id))
    assert [r.id for r in scheduler.admit(lambda r: r.id != 2)] == [1]
    assert admitted(scheduler) == [2, 3]


@dataclass
class Pending:
    id: int
    client: str
    remaining: int
    age: int = 0


def read(scheduler: PrefillScheduler, pending: list[Pending], chunk_tokens: int) -> int:
    """One chunk; the id it was for."""
    chosen = scheduler.next(pending)
    tokens = min(chunk_tokens, chosen.remaining)
    chosen.remaining -= tokens
    scheduler.charge(chosen.client, tokens)
    if not chosen.remaining:
        pending.remove(chosen)
    return chosen.id


@pytest.mark.parametrize("client", ["same", "other"])
def test_a_short_prompt_behind_a_long_one_is_next(client: str) -> None:
    scheduler, pending = PrefillScheduler(), [Pending(1, "same", 10_000)]
    assert read(scheduler, pending, 100) == 1
    pending.append(Pending(2, client, 40))
    assert read(scheduler, pending, 100) == 2


def test_a_long_prompt_ages_and_is_not_starved_by_any_number_of_short_ones() -> None:
    scheduler, pending = PrefillScheduler(), [Pending(0, "a", 10_000)]
    served = []
    for id in range(1, 41):
        pending.append(Pending(id, "a", 10))
        served.append(read(scheduler, pending, 100))
    assert served.count(0) >= 40 // 6


def test_two_clients_are_read_for_in_equal_parts() -> None:
    scheduler, pending = PrefillScheduler(), [Pending(1, "a", 10_000), Pending(2, "a", 10_000), Pending(3, "b", 10_000)]
    served = [read(scheduler, pending, 100) for _ in range(40)]
    assert served.count(3) == 20


def test_a_client_that_was_idle_has_earned_nothing() -> None:
    scheduler, pending = PrefillScheduler(), [Pending(1, "a", 10_000)]
    for _ in range(20):
        read(scheduler, pending, 100)
    pending.append(Pending(2, "b", 10_000))
    served = [read(scheduler, pending, 100) for _ in range(20)]
    assert served.count(1) == 10
