"""What the device is told, with a stand-in for MLX on a Mac."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from server.engine.device.device import Device
from tests.support.metal import OUT_OF_MEMORY, FakeMetal

GIB = 2**30


def test_on_metal_what_is_recommended_is_the_limit() -> None:
    device = Device(FakeMetal(recommended=11 * GIB))
    assert device.memory_limit(0) == 11 * GIB
    assert device.memory_limit(8 * GIB) == 8 * GIB
    assert device.memory_limit(64 * GIB) == 11 * GIB


def test_the_weights_are_wired_and_nothing_else() -> None:
    metal = FakeMetal(recommended=11 * GIB, active=9 * GIB, cached=GIB)
    device = Device(metal)
    device.prepare(11 * GIB, 9 * GIB)
    device.wire()
    assert metal.told["wired"] == 9 * GIB
    # What was kept of the load would be wired in their place.
    assert metal.done == ["wait", "clear", "wire"]


def test_weights_beyond_what_is_recommended_are_wired_as_far_as_metal_allows() -> None:
    metal = FakeMetal(recommended=8 * GIB, active=9 * GIB)
    Device(metal).wire()
    assert metal.told["wired"] == 8 * GIB


@pytest.mark.parametrize(("limit", "weights"), [(11 * GIB, 10 * GIB), (108 * GIB, 12 * GIB), (GIB, 2 * GIB)])
def test_what_is_kept_of_freed_buffers_is_a_small_part_of_what_the_weights_leave(limit: int, weights: int) -> None:
    metal = FakeMetal(recommended=limit)
    Device(metal).prepare(limit, weights)
    assert metal.told["memory"] == limit
    assert 0 <= metal.told["cache"] <= max(0, limit - weights) / 8


def test_buffers_are_given_back_only_when_nothing_is_under_way_also_after_a_failure() -> None:
    metal = FakeMetal(recommended=GIB, pending=OUT_OF_MEMORY)
    device = Device(metal)
    device.let_go_after_a_failure()
    assert metal.done == ["wait", "clear"]
    metal.pending = OUT_OF_MEMORY
    with pytest.raises(RuntimeError, match="Insufficient Memory"):
        device.let_go()
    assert metal.done == ["wait", "clear", "wait"]


def test_elsewhere_nothing_is_wired() -> None:
    told: list[int] = []
    mx = SimpleNamespace(device_info=dict, set_cache_limit=told.append, set_memory_limit=told.append)
    device = Device(mx)
    device.prepare(GIB, 0)
    device.wire()
    assert len(told) == 2
    assert not device.is_metal
    assert device.memory_limit(0) > 2**20
