"""The scheduler is pure: requests in, ids out."""

from __future__ import annotations

from server.engine.messages import Generate, Sampling
from server.engine.scheduler import Scheduler


def request(id: int) -> Generate:
    return Generate(id=id, prompt=[1], max_tokens=1, stop_tokens=[], sampling=Sampling(seed=0))


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
