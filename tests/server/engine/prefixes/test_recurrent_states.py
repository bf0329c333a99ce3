"""The state of a recurrent layer is that of one token: kept for its own end, and for no other that lies before it."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, KVCache

from server.engine.compat import Layers
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.prefixes.prefix_cache import Hit, PrefixCache
from tests.support.restoring import restored


def caches(tokens: list[int]) -> Layers:
    """Of a layer with full attention and a recurrent one, whose state is how many tokens it has read."""
    keys = mx.array(tokens, mx.float32)[None, None, :, None]
    full, recurrent = KVCache(), ArraysCache(1)
    full.update_and_fetch(keys, -keys)
    recurrent[0] = mx.array([len(tokens)])
    return [full, recurrent]


def state(hit: Hit) -> int:
    return int(hit.layers[1][0].item()) if hit.layers else 0


def test_what_was_moved_comes_back_without_another_ones_state(tmp_path: Path) -> None:
    cache = PrefixCache(10**9, DiskTier(tmp_path, "model", 10**9), trimmable=False)
    tokens = list(range(100, 160))
    cache.store(tokens[:50], caches(tokens[:50]), [], "user")
    while cache.disk.write_one():
        cache.disk._writer.wait(60)
    cache.limit = 0
    assert state(cache.find([*tokens, 7])) == 50
    cache.limit = 10**9
    cache.store(tokens, caches(tokens), [], "user", give_up=True)
    assert state(cache.find([*tokens, 7])) == 60
    other = [*tokens[:50], 7, 8]
    again = restored(cache, other)
    assert (again.length, state(again)) == (50, 50)
