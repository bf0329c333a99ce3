"""Prefixes on disk, through the real engine process: found after a restart, never wrong, and for their owner only."""

from __future__ import annotations

import asyncio
import gc
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from server.engine.prefixes.disk_tier import DiskTier
from server.engine.prefixes.prefix_cache import PrefixCache
from server.engine.prefixes.prefix_tree import PrefixTree
from tests.support.restoring import restored
from tests.support.sliding_model import write_sliding_model
from tests.support.talks import Model, Talk, ask, engine_for, new_talk


@pytest.fixture(scope="module")
def written(model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """What an engine that was asked `new_talk(10)` has left on disk, and its answer."""
    folder = tmp_path_factory.mktemp("written")

    async def run() -> list[int]:
        async with engine_for(model.folder, folder) as engine:
            return (await ask(engine, new_talk(10)))[0]

    return folder, asyncio.run(run())


@pytest.fixture
def left(written: tuple[Path, list[int]], tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(written[0], tmp_path / "left"))


def test_a_restart_finds_the_conversation_on_disk(model: Model, written: tuple[Path, list[int]], left: Path) -> None:
    async def run() -> None:
        talk = new_talk(10).say("assistant", written[1]).say("user", 20)
        async with engine_for(model.folder, left) as engine:
            answer, cached = await ask(engine, talk)
            assert cached >= 110
            assert answer == model.greedy(talk.asked()[0])

    asyncio.run(run())


def test_a_restart_finds_both_of_two_conversations_that_begin_alike(model: Model, tmp_path: Path) -> None:
    """The beginning of the shorter one is in the file of the longer one."""
    alike = list(range(20, 60))

    async def run() -> None:
        longer, shorter = (Talk(random.Random(seed)).say("user", [*alike, seed, *range(50)]) for seed in (70, 71))
        longer.say("user", 90)
        async with engine_for(model.folder, tmp_path) as engine:
            answers = [(await ask(engine, talk))[0] for talk in (longer, shorter)]
        async with engine_for(model.folder, tmp_path) as engine:
            for talk, answer in zip((longer, shorter), answers, strict=True):
                again, cached = await ask(engine, talk)
                assert again == answer
                assert cached >= len(talk.tokens) - 8

    asyncio.run(run())


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "garbage", "deleted"])
def test_a_damaged_file_is_a_miss_and_never_an_error(
    model: Model, written: tuple[Path, list[int]], left: Path, damage: str
) -> None:
    async def run() -> None:
        talk, expected = new_talk(10), written[1]
        files = list(stored(left))
        assert files
        for path in files:
            spoil(path, damage)
        async with engine_for(model.folder, left) as engine:
            assert await ask(engine, talk) == (expected, 0)
            assert (await ask(engine, talk))[0] == expected

    asyncio.run(run())


def stored(folder: Path) -> Iterator[Path]:
    return (folder / "prefixes").glob("*/*.safetensors")


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "deleted":
        path.unlink()
    elif damage == "flipped":
        content[-100] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes({"truncated": bytes(content[:-50]), "empty": b"", "garbage": b"x" * 1000}[damage])


def test_prompts_on_disk_are_for_their_owner_only_and_within_the_limit(sliding: Model, tmp_path: Path) -> None:
    async def run() -> None:
        limit = 150_000
        async with engine_for(sliding.folder, tmp_path, disk_limit=limit) as engine:
            for seed in range(12):
                await ask(engine, new_talk(100 + seed))
        files = list(stored(tmp_path))
        assert 0 < sum(path.stat().st_size for path in files) <= limit
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        assert {path.parent.stat().st_mode & 0o777 for path in files} == {0o700}

    asyncio.run(run())


def test_another_model_never_uses_the_files(sliding: Model, tmp_path: Path) -> None:
    async def run() -> None:
        other = write_sliding_model(tmp_path / "other", seed=1)
        talk = new_talk(12)
        async with engine_for(sliding.folder, tmp_path) as engine:
            await ask(engine, talk)
        async with engine_for(other, tmp_path) as engine:
            _, cached = await ask(engine, talk)
            assert cached == 0

    asyncio.run(run())


@pytest.mark.parametrize(("prefill_rate", "found"), [(1.0, 60), (1e12, 0)])
def test_the_disk_is_read_only_when_that_is_faster_than_prefill(
    sliding: Model, tmp_path: Path, prefill_rate: float, found: int
) -> None:
    tokens = list(range(100, 160))
    layers = make_prompt_cache(sliding.raw)
    sliding.raw(mx.array([tokens]), cache=layers)
    written = PrefixCache(10**9, DiskTier(tmp_path, "model", 10**9), trimmable=False)
    written.store(tokens, layers, [], "user")
    written.disk.close(60)
    disk = DiskTier(tmp_path, "model", 10**9)
    hit = restored(PrefixCache(10**9, disk, trimmable=False, prefill_rate=lambda: prefill_rate), [*tokens, 1, 2])
    assert (hit.length, hit.shared) == (found, 60)


def test_a_salt_under_which_nothing_is_kept_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = PrefixCache(10**9, DiskTier(tmp_path, "model", 0), trimmable=True)
    before = _trees()
    for number in range(100):
        assert cache.find([1, 2, 3], f"salt-{number}").length == 0
        assert not cache.has([1, 2], f"salt-{number}")
    assert _trees() <= before


def _trees() -> int:
    """Those of other tests of this process are among them."""
    return sum(isinstance(alive, PrefixTree) for alive in gc.get_objects())
