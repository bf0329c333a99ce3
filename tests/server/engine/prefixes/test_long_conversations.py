"""Conversations of more messages than Python recurses: what they cost the engine grows with them and no faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache

from server.engine.compat import Layers
from server.engine.prefixes import persistence, prefix_tree
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.prefixes.persistence import Persistence
from server.engine.prefixes.prefix_cache import PrefixCache
from server.engine_client.protocol import Boundary

MESSAGES, WORDS = 1500, 4


def conversation(messages: int) -> tuple[list[int], Layers, list[Boundary]]:
    tokens = [at % 997 for at in range(messages * WORDS)]
    row = mx.array(tokens, mx.float32)[None, None, :, None]
    layer = KVCache()
    layer.update_and_fetch(row, -row)
    return tokens, [layer], [Boundary(WORDS * (at + 1), "user") for at in range(messages)]


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[list[int]]:
    """How often it is called."""
    real, calls = getattr(owner, name), [0]

    def counting(*others: Any) -> Any:
        calls[0] += 1
        return real(*others)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counting)
        yield calls


def test_keeping_and_finding_it_looks_at_each_message_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PrefixCache(10**9, DiskTier(None, "", 0), trimmable=True)
    tokens, layers, boundaries = conversation(MESSAGES)
    with counted(monkeypatch, prefix_tree, "common_prefix") as looks:
        for _ in range(2):
            cache.store(tokens, layers, boundaries, "user")
            assert cache.find([*tokens, 9]).length == len(tokens)
    assert looks[0] <= 12 * MESSAGES


def test_all_of_it_can_be_evicted() -> None:
    cache = PrefixCache(10**9, DiskTier(None, "", 0), trimmable=True)
    tokens, layers, boundaries = conversation(MESSAGES)
    cache.store(tokens, layers, boundaries, "user")
    cache.shrink(cache.nbytes // 2)
    kept = cache.find([*tokens, 9]).length
    assert len(tokens) / 4 < kept < len(tokens) * 3 / 4
    cache.shrink(0)
    assert cache.nbytes == 0


@pytest.mark.parametrize("busy", [True, False])
def test_each_segment_is_judged_a_few_times_before_all_are_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, busy: bool
) -> None:
    segments = 60
    now = [0.0]
    cache = PrefixCache(10**9, DiskTier(tmp_path, "model", 10**9), trimmable=True, clock=lambda: now[0])
    tokens, layers, boundaries = conversation(segments)
    cache.store(tokens, layers, boundaries, "user")
    now[0] = 301.0
    with counted(monkeypatch, Persistence, "is_worth_writing") as judged:
        if busy:
            # A step may have time for one of them only.
            monkeypatch.setattr(persistence, "_BEGINNING_S", 0.0)
            for _ in range(segments + 1):
                cache.disk.tend_while_busy()
        cache.disk.close(60)
    again = PrefixCache(10**9, DiskTier(tmp_path, "model", 10**9), trimmable=True)
    assert len(list(again.shelf)) == segments
    assert judged[0] <= 2 * segments


def test_a_step_begins_to_write_for_a_moment_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(persistence, "_BEGINNING_S", 0.0)
    now = [0.0]
    cache = PrefixCache(10**9, DiskTier(tmp_path, "model", 10**9), trimmable=True, clock=lambda: now[0])
    cache.store(*conversation(20), "user")
    now[0] = 301.0
    with counted(monkeypatch, Persistence, "is_worth_writing") as judged:
        for step in range(1, 4):
            cache.disk.tend_while_busy()
            assert judged[0] == step
    cache.disk.close(60)
