"""The memory that a prefix is copied into is free before it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache

from server.engine import kv
from server.engine.admission import Admission
from server.engine.cost_model import measure
from server.engine.engine import Engine
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.prefixes.prefix_cache import PrefixCache
from server.engine.rehearsal import Together
from server.engine_client.protocol import Boundary, Load
from tests.support.stepped import finish
from tests.support.talks import Model, generate

SHORT, LONG = 100, 3000


def caches(tokens: list[int]) -> list[KVCache]:
    keys = mx.array(tokens, mx.float32)[None, None, :, None]
    layer = KVCache()
    layer.update_and_fetch(keys, -keys)
    return [layer]


def test_what_is_kept_of_a_prompt_and_is_too_much_makes_room_when_more_of_it_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = PrefixCache(10**6, DiskTier(None, "", 0), trimmable=True)
    tokens = list(range(100, 160))
    cache.store(tokens[:50], caches(tokens[:50]), [], "user")
    cache.limit = cache.nbytes // 2
    assert not cache.store(tokens, caches(tokens), [], "user", give_up=True)
    assert cache.nbytes <= cache.limit
    assert not caplog.records


def test_what_is_before_a_segment_that_others_share_goes_too(tmp_path: Path) -> None:
    cache = PrefixCache(10**6, DiskTier(tmp_path, "model", 10**9), trimmable=True)
    tokens, other = list(range(100)), [*range(60), *range(200, 220)]
    for each in (tokens, other):
        cache.store(each, caches(each), [Boundary(30, "system")], "user")
    while cache.disk.write_one():
        cache.disk._writer.wait(60)
    cache.shrink(0)
    assert cache.nbytes == 0


def test_what_comes_from_disk_finds_room_in_memory(tmp_path: Path) -> None:
    cache = PrefixCache(10**6, DiskTier(tmp_path, "model", 10**9), trimmable=True)
    tokens, other = list(range(100)), list(range(200, 300))
    cache.store(tokens, caches(tokens), [], "user")
    while cache.disk.write_one():
        cache.disk._writer.wait(60)
    cache.shrink(0)
    cache.store(other, caches(other), [], "user")
    cache.limit = 0
    restore = cache.restore([*tokens, 7])
    assert not restore.done
    assert cache.nbytes == 0


def test_what_comes_back_as_it_was_is_not_written_again(tmp_path: Path) -> None:
    """Its file stays."""
    cache = PrefixCache(10**6, DiskTier(tmp_path, "model", 10**9), trimmable=True)
    tokens = list(range(100))
    cache.store(tokens, caches(tokens), [], "user")
    while cache.disk.write_one():
        cache.disk._writer.wait(60)
    files = sorted(tmp_path.glob("*/*.safetensors"))
    cache.shrink(0)
    cache.store(tokens, caches(tokens), [], "user", give_up=True)
    assert cache.find([*tokens, 7]).length == 100
    assert sorted(tmp_path.glob("*/*.safetensors")) == files != []


def prompt(number: int, length: int) -> list[int]:
    return [10 + number, *(10 + (number * 37 + at * 7) % 400 for at in range(length - 1))]


def ask(engine: Engine, number: int, length: int) -> None:
    engine.handle(generate(prompt(number, length), max_tokens=2))
    finish(engine)


def test_what_is_found_is_copied_when_prefixes_have_made_room_for_it(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short requests have filled what a long one had left, and it comes back."""
    cost, used = measure(model.raw), mx.get_active_memory()
    # For the long one twice, as kept and as read again, and for reading it.
    room = 2 * cost.kv_bytes(LONG + 600) + 2 * cost.chunk_bytes(64, LONG + 600)
    admission = Admission(used + room, used, cost)
    options = Load(model_dir="", max_concurrent=4, prefill_step_tokens=64, decode_stall_target_s=30, cache_limit=room)
    engine = Engine(model.raw, 448, options, admission, DiskTier(None, "", 0), Together())
    ask(engine, 0, LONG)
    for number in range(1, 61):
        ask(engine, number, SHORT)
        # Else it would be the long one that has to go.
        engine._prefixes.find(prompt(0, LONG))
    over: list[int] = []
    real = kv.concatenate

    def noting(*others: Any) -> Any:
        over.append(engine._prefixes.nbytes + admission.reserved(engine._memory.running()) - admission.low_watermark)
        return real(*others)

    monkeypatch.setattr(kv, "concatenate", noting)
    ask(engine, 0, LONG)
    [bytes_over] = over
    assert bytes_over <= 0
