"""What of the prefixes goes to disk, when, and comes back: seldom, late, and without anybody waiting for it."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, RotatingKVCache

from server.engine import kv
from server.engine.admission import Admission
from server.engine.compat import Layers
from server.engine.cost_model import measure
from server.engine.engine import Engine
from server.engine.linear_cost import LinearCost
from server.engine.prefixes import eviction
from server.engine.prefixes.disk_tier import DiskTier, StoredSegment
from server.engine.prefixes.prefix_cache import Hit, PrefixCache
from server.engine.rehearsal import Together
from server.engine_client.protocol import Boundary, Cancel, Kind, Load, Prefilled, Tokens
from tests.support.restoring import restored, wait_for
from tests.support.stepped import a, finish, tokens_of, until
from tests.support.talks import Model, generate, new_talk

WINDOW = 8


def caches(tokens: list[int], *, window: bool = True) -> Layers:
    """Of a model with a growing layer and, perhaps, a window; each key is its token."""
    row = mx.array(tokens, mx.float32)[None, None, :, None]
    layers: Layers = [KVCache()] + ([RotatingKVCache(WINDOW)] if window else [])
    for layer in layers:
        layer.update_and_fetch(mx.broadcast_to(row, (1, 1, len(tokens), 4)), -row)
    return layers


def disk(folder: Path, **options: Any) -> DiskTier:
    return DiskTier(folder / "prefixes", "model", **({"limit": 10**9} | options))


def held(hit: Hit) -> list[int]:
    keys: Any = hit.layers[0].state[0][0, 0, : hit.length, 0].tolist() if hit.layers else []
    return [int(key) for key in keys]


def written(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("prefixes/*/*.safetensors"))


# ---- nobody waits


class SlowDisk(DiskTier):
    """Its files come when they are let."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "prefixes", "model", 10**9)
        self.let = threading.Event()

    def check(self, stored: StoredSegment) -> bool:
        assert self.let.wait(60)
        return super().check(stored)

    def write(self, *arguments: Any) -> StoredSegment | None:
        assert self.let.wait(60)
        return super().write(*arguments)


def engine_with(model: Model, disk: DiskTier, cache_limit: int = 10**9) -> Engine:
    options = Load(
        model_dir="", max_concurrent=8, prefill_step_tokens=2048, cache_limit=cache_limit, decode_stall_target_s=60
    )
    return Engine(model.raw, 448, options, Admission(10**10, 0, measure(model.raw)), disk, Together())


def test_a_stream_goes_on_while_another_prompt_comes_from_disk(model: Model, tmp_path: Path) -> None:
    talk = new_talk(31)
    first = engine_with(model, disk(tmp_path))
    first.handle(generate(*talk.asked()))
    expected = tokens_of(finish(first), 0)
    first.close(60)
    slow = SlowDisk(tmp_path)
    engine = engine_with(model, slow)
    engine.handle(generate(*new_talk(32).asked(), id=1, max_tokens=60))
    until(engine, a(Tokens))
    engine.handle(generate(*talk.asked(), id=2))
    streamed = tokens_of([event for _ in range(20) for event in engine.step()], 1)
    assert len(streamed) == 20
    slow.let.set()
    events = finish(engine)
    assert tokens_of(events, 2) == expected
    assert max(event.cached for event in events if isinstance(event, Prefilled) and event.id == 2) >= 110


def test_alone_a_prompt_waits_for_the_disk_and_not_for_ever_when_it_is_cancelled(model: Model, tmp_path: Path) -> None:
    talk = new_talk(33)
    first = engine_with(model, disk(tmp_path))
    first.handle(generate(*talk.asked()))
    finish(first)
    first.close(60)
    slow = SlowDisk(tmp_path)
    engine = engine_with(model, slow)
    engine.handle(generate(*talk.asked()))
    for _ in range(3):
        assert not [event for event in engine.step() if isinstance(event, Tokens)]
    engine.handle(Cancel(0))
    assert not engine.busy
    engine.handle(generate(*talk.asked(), id=1))
    engine.step()
    slow.let.set()
    assert len(tokens_of(finish(engine), 1)) == 8


def test_what_saves_most_for_a_second_of_reading_is_read_first(tmp_path: Path) -> None:
    kept = PrefixCache(10**9, disk(tmp_path), trimmable=False)
    prompts = [[number, *range(100, 100 + length)] for number, length in ((1, 20), (2, 30), (3, 800))]
    for prompt in prompts:
        kept.store(prompt, caches(prompt), [], "user")
    kept.disk.close(60)
    order: list[int] = []

    class Noting(SlowDisk):
        def check(self, stored: StoredSegment) -> bool:
            order.append(stored.tokens[0])
            return super().check(stored)

    slow = Noting(tmp_path)
    cache = PrefixCache(10**9, slow, trimmable=False)
    restores = [cache.restore([*prompt, 9]) for prompt in prompts]
    slow.let.set()
    wait_for(cache, *restores)
    assert order == [1, 3, 2]


@pytest.mark.parametrize("forgotten", [1, 2])
def test_what_is_forgotten_while_it_is_read_or_waits_for_that_is_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, forgotten: int
) -> None:
    kept = PrefixCache(10**9, disk(tmp_path), trimmable=False)
    prompts = {number: [number, *range(100, 120)] for number in (1, 2)}
    for prompt in prompts.values():
        kept.store(prompt, caches(prompt), [], "user")
    kept.disk.close(60)
    slow = SlowDisk(tmp_path)
    cache = PrefixCache(10**9, slow, trimmable=False)
    restores = {number: cache.restore([*prompt, 9]) for number, prompt in prompts.items()}
    [node] = cache.shelf.match(prompts[forgotten], "").path
    cache.disk.delete(cache.shelf.forget(node))
    slow.let.set()
    wait_for(cache, *restores.values())
    assert [number for number, prompt in prompts.items() if held(cache.find([*prompt, 9])) == prompt] == [3 - forgotten]
    assert caplog.messages == []


def test_a_stream_goes_on_while_prefixes_are_written(sliding: Model, tmp_path: Path) -> None:
    slow = SlowDisk(tmp_path)
    engine = engine_with(sliding, slow)
    engine.handle(generate(*new_talk(34).asked()))
    finish(engine)
    assert engine.write_one()
    engine.handle(generate(*new_talk(35).asked(), id=1))
    assert len(tokens_of(finish(engine), 1)) == 8
    slow.let.set()
    engine.close(60)
    assert written(tmp_path)


def test_a_killed_engine_finds_what_was_written_while_it_was_idle(model: Model, tmp_path: Path) -> None:
    talk = new_talk(36)
    killed = engine_with(model, disk(tmp_path))
    killed.handle(generate(*talk.asked()))
    answer = tokens_of(finish(killed), 0)
    while killed.write_one():
        pass
    talk.say("assistant", answer).say("user", 20)
    engine = engine_with(model, disk(tmp_path))
    engine.handle(generate(*talk.asked()))
    events = finish(engine)
    assert max(event.cached for event in events if isinstance(event, Prefilled)) >= 110
    assert tokens_of(events, 0) == model.greedy(talk.asked()[0])


# ---- when


def test_what_leaves_memory_is_written_and_found_again(tmp_path: Path) -> None:
    tokens = [list(range(100 * n, 100 * n + 50)) for n in range(1, 4)]
    one = kv.nbytes(kv.extract(caches(tokens[0]), 0, 50))
    cache = PrefixCache(one, disk(tmp_path), trimmable=False)
    for each in tokens:
        cache.store(each, caches(each), [], "user")
        cache.find([7, 8])
    cache.disk.close(60)
    assert cache.nbytes <= one
    assert held(restored(PrefixCache(10**9, disk(tmp_path), trimmable=False), [*tokens[0], 9])) == tokens[0]


def test_what_has_to_go_at_once_is_not_written(tmp_path: Path) -> None:
    cache = PrefixCache(10**9, disk(tmp_path), trimmable=False)
    cache.store([1, 2, 3], caches([1, 2, 3]), [], "user")
    cache.shrink(0)
    assert cache.nbytes == 0
    cache.disk.close(60)
    assert not written(tmp_path)


class CutDisk(DiskTier):
    """Its files are cut once they were checked and opened."""

    def open(self, stored: StoredSegment) -> Layers | None:
        layers = super().open(stored)
        os.truncate(stored.path, stored.nbytes - 64)
        return layers


def test_what_cannot_be_read_in_the_end_is_a_miss(tmp_path: Path) -> None:
    tokens = list(range(40))
    before = PrefixCache(10**9, disk(tmp_path), trimmable=True)
    before.store(tokens, caches(tokens, window=False), [], "user")
    before.disk.close(60)
    cache = PrefixCache(10**9, CutDisk(tmp_path / "prefixes", "model", 10**9), trimmable=True)
    assert restored(cache, [*tokens, 1]) == Hit(None, 0, 0)
    assert written(tmp_path) == 0


def test_while_it_works_an_engine_writes_now_and_then(tmp_path: Path) -> None:
    now = [0.0]
    cache = PrefixCache(10**9, disk(tmp_path), trimmable=True, clock=lambda: now[0])
    cache.store([1, 2, 3], caches([1, 2, 3], window=False), [], "user")
    for now[0] in (100.0, 299.0):
        cache.disk.tend_while_busy()
        assert not cache.disk.busy
    now[0] = 301.0
    cache.disk.tend_while_busy()
    assert cache.disk.busy
    cache.disk.close(60)
    assert written(tmp_path)


def test_no_more_is_written_than_an_hour_allows(tmp_path: Path) -> None:
    limit = 40_000
    cache = PrefixCache(10**9, disk(tmp_path, hourly_limit=limit), trimmable=True)
    for number in range(30):
        tokens = [number, *range(200)]
        cache.store(tokens, caches(tokens, window=False), [], "user")
    cache.disk.close(60)
    assert limit / 2 < written(tmp_path) <= limit * 1.5


def test_models_that_take_turns_write_no_more_in_an_hour_than_one(tmp_path: Path) -> None:
    """Each has the engine's process, and the folder of its prefixes, for a moment."""
    limit = 40_000
    for turn in range(8):
        tier = DiskTier(tmp_path / "prefixes", f"model{turn % 2}", 10**9, limit)
        cache = PrefixCache(10**9, tier, trimmable=True)
        for number in range(10):
            tokens = [10 * turn + number, *range(200)]
            cache.store(tokens, caches(tokens, window=False), [], "user")
        cache.disk.close(60)
    assert limit / 2 < written(tmp_path) <= limit * 1.5


# ---- what


def test_of_a_conversation_one_state_of_a_window_goes_to_disk_and_the_system_prompts(tmp_path: Path) -> None:
    cache = PrefixCache(10**9, disk(tmp_path), trimmable=False)
    tokens: list[int] = []
    for number in range(12):
        tokens = [*tokens, *range(100 * number, 100 * number + 20)]
        cache.store(tokens, caches(tokens), [], "user" if number else "system")
    cache.store([*tokens, 7], caches([*tokens, 7]), [], "assistant")
    cache.disk.close(60)
    resumable = [stored.tokens for stored in disk(tmp_path).scan() if stored.resumable]
    assert {len(found) for found in resumable} == {20, 240, 241}
    again = PrefixCache(10**9, disk(tmp_path), trimmable=False)
    assert held(restored(again, [*tokens, 9, 9])) == tokens


def test_states_that_no_later_turn_continues_from_leave_memory(tmp_path: Path) -> None:
    cache = PrefixCache(10**9, disk(tmp_path, limit=0), trimmable=False)
    tokens: list[int] = []
    ends = []
    for number in range(12):
        tokens = [*tokens, *range(100 * number, 100 * number + 20)]
        ends.append(list(tokens))
        cache.store(tokens, caches(tokens), [], "user" if number else "system")
    resumable = [cache.has(end) for end in ends]
    assert resumable == [True, *[False] * 7, *[True] * 4]


def test_a_state_that_is_large_is_written_only_where_it_saves_several_times_its_reading(tmp_path: Path) -> None:
    """What a Gemma 4 has at each token, on an M4 Max and on an M1."""
    for rate, worth in ((1600.0, {2000: True, 300: False}), (185.0, {2000: True, 300: True})):
        cache = PrefixCache(10**10, disk(tmp_path), trimmable=False, prefill_rate=lambda rate=rate: rate)  # type: ignore[misc]
        tokens = list(range(2000))
        cache.store(tokens, caches(tokens), [], "user")
        while cache.disk.write_one():
            pass
        cache.store([*tokens, *range(300)], caches([*tokens, *range(300)]), [], "user")
        nodes = {len(node.label): node for node in cache.shelf}
        for node in nodes.values():
            node.segment.nbytes = 210 * 10**6
        assert {length: cache.disk.is_worth_writing(node) for length, node in nodes.items()} == worth


@pytest.mark.parametrize(("kind", "worth"), [("user", True), ("assistant", False)])
def test_the_state_at_the_end_of_an_answer_must_save_more(tmp_path: Path, kind: Kind, worth: bool) -> None:
    """On an M1: the end of the message before is on disk, and 124 more tokens take 0.7 s."""
    cache = PrefixCache(10**10, disk(tmp_path), trimmable=False, prefill_rate=lambda: 180.0)
    tokens = list(range(1000))
    cache.store(tokens, caches(tokens), [], "user")
    while cache.disk.write_one():
        pass
    answered = [*tokens, *range(160)]
    cache.store(answered, caches(answered), [], kind)
    [node] = [node for node in cache.shelf if len(node.label) == 160]
    node.segment.nbytes = 210 * 10**6
    cache.disk._disk._reading = LinearCost()
    assert cache.disk.is_worth_writing(node) == worth


# ---- the files of earlier processes


def test_a_resume_point_inside_of_another_file_is_found_after_a_restart(tmp_path: Path) -> None:
    long = list(range(60))
    cache = PrefixCache(10**9, disk(tmp_path), trimmable=False)
    cache.store(long, caches(long), [], "user")
    cache.store(long[:30], caches(long[:30]), [], "user")
    other = [*long[:30], *range(500, 520)]
    cache.store(other, caches(other), [], "user")
    cache.disk.close(60)
    again = PrefixCache(10**9, disk(tmp_path), trimmable=False)
    for tokens, length in ((long, 60), (other, 50), ([*long[:30], 777], 30), ([*long[:45], 777], 30)):
        hit = restored(again, [*tokens, 999])
        assert (hit.length, held(hit)) == (length, tokens[:length])
        assert hit.layers is not None
        window = hit.layers[1]
        assert window.offset == length
        assert window.keys[0, 0, :, 0].tolist() == tokens[length - WINDOW : length]


@pytest.mark.parametrize("trimmable", [True, False])
def test_whatever_happens_a_hit_holds_its_tokens_and_the_bytes_are_counted(tmp_path: Path, trimmable: bool) -> None:
    rng = random.Random(5)
    one = kv.nbytes(kv.extract(caches([1] * 40, window=not trimmable), 0, 40))
    known: list[list[int]] = [[]]

    def new_cache() -> PrefixCache:
        return PrefixCache(6 * one, disk(tmp_path, limit=300_000), trimmable=trimmable)

    cache = new_cache()
    for _ in range(300):
        base = rng.choice(known)
        tokens = [*base[: rng.randrange(len(base) + 1)], *(rng.randrange(1, 6) for _ in range(rng.randrange(2, 30)))]
        hit = restored(cache, tokens)
        assert held(hit) == tokens[: hit.length]
        if hit.layers and not trimmable:
            assert hit.layers[1].keys[0, 0, :, 0].tolist() == tokens[max(0, hit.length - WINDOW) : hit.length]
        boundaries = [Boundary(rng.randrange(1, len(tokens) + 1), "user")]
        kind = rng.choice(["system", "user", "assistant"])
        give_up = rng.random() < 0.5
        cache.store(tokens, caches(tokens, window=not trimmable), boundaries, kind, give_up=give_up)  # type: ignore[arg-type]
        known.append(tokens)
        if rng.random() < 0.1:
            cache.disk.write_one()
        if rng.random() < 0.03:
            cache.disk.close(60)
            cache = new_cache()
        assert cache.nbytes == sum(segment.nbytes for segment in {node.segment for node in cache.shelf})
        assert cache.nbytes <= 6 * one


def test_of_what_is_given_up_as_much_is_kept_as_there_is_room_for() -> None:
    tokens = [at % 90 for at in range(100)]
    one = kv.nbytes(kv.extract(caches([1], window=False), 0, 1))
    cache = PrefixCache(60 * one, DiskTier(None, "", 0), trimmable=True)
    assert not cache.store(tokens, caches(tokens, window=False), [], "user")
    assert cache.store(tokens, caches(tokens, window=False), [Boundary(50, "system")], "user", give_up=True)
    assert held(cache.find(tokens)) == tokens[:60]
    # It is not given up for what goes on with it and does not fit.
    assert not cache.store([*tokens, 7], caches([*tokens, 7], window=False), [], "user")
    assert held(cache.find(tokens)) == tokens[:60]


def test_what_the_disk_has_alone_counts_when_it_is_kept_again(tmp_path: Path) -> None:
    """Not all of a conversation is copied for what was added to it, beside the caches that it runs on."""
    tokens = [at % 90 for at in range(100)]
    cache = PrefixCache(10**6, disk(tmp_path), trimmable=True)
    cache.store(tokens, caches(tokens, window=False), [], "user")
    cache.disk.close(60)
    one = cache.nbytes // 100
    cache = PrefixCache(50 * one, disk(tmp_path), trimmable=True)
    longer = [*tokens, *range(100, 110)]
    assert not cache.store(longer, caches(longer, window=False), [], "user")
    cache.limit = 110 * one
    assert cache.store(longer, caches(longer, window=False), [], "user")
    assert (held(cache.find([*longer, 1])), cache.nbytes) == (longer, 110 * one)


def test_evicting_all_looks_at_each_segment_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [0]
    real = eviction._priority

    def counting(*others: Any) -> Any:
        looks[0] += 1
        return real(*others)

    monkeypatch.setattr(eviction, "_priority", counting)
    cache = PrefixCache(10**9, DiskTier(None, "", 0), trimmable=True)
    for number in range(300):
        tokens = [number, *range(20)]
        cache.store(tokens, caches(tokens, window=False), [], "user")
    cache.shrink(0)
    assert cache.nbytes == 0
    assert 300 <= looks[0] <= 2 * 300
