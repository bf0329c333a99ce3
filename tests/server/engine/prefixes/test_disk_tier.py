"""The files of prefixes: private, and shared by servers that know nothing of each other."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, save_prompt_cache

from server.engine.compat import Layers
from server.engine.prefixes import disk_tier
from server.engine.prefixes.disk_tier import DiskTier, StoredSegment
from server.engine_client.protocol import Finished, Generate, Prefilled, Sampling
from server.engine_client.supervisor import Supervisor
from server.settings.types import CacheSettings, EngineSettings, Settings, StorageSettings
from tests.support.tiny_model import write_tiny_model

TOKENS = [1, 2, 3]
LIMIT = 10**9


def segment() -> Layers:
    keys = mx.ones((1, 1, len(TOKENS), 4))
    return [KVCache.from_state((keys, keys, len(TOKENS)))]


def write(disk: DiskTier, tokens: list[int] = TOKENS) -> StoredSegment | None:
    return disk.write(tokens, 0, "user", segment())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


class Unsaveable(KVCache):
    """As the cache of a model's own code may be."""

    @property
    def state(self) -> Any:
        return [b"no array and no number"]


@pytest.fixture
def while_writing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], None]], None]:
    """Has something done each time a partial file is complete and does not have its name yet."""

    def hook(action: Callable[[Path], None]) -> None:
        def save(path: str, *arguments: Any) -> None:
            save_prompt_cache(path, *arguments)
            action(Path(path))

        monkeypatch.setattr(disk_tier, "save_prompt_cache", save)

    return hook


Hook = Callable[[Callable[[Path], None]], None]


def test_a_server_that_starts_leaves_alone_what_another_is_writing(tmp_path: Path, while_writing: Hook) -> None:
    first = DiskTier(tmp_path / "prefixes", "model", LIMIT)
    while_writing(lambda _: DiskTier(tmp_path / "prefixes", "model", LIMIT).scan() and None)
    stored = write(first)
    assert stored is not None
    assert stored.path.exists()
    assert first.enabled


def test_two_writers_never_write_the_same_partial_file(tmp_path: Path, while_writing: Hook) -> None:
    first, second = (DiskTier(tmp_path / "prefixes", "model", LIMIT) for _ in range(2))
    partial: list[Path] = []

    def interleave(path: Path) -> None:
        partial.append(path)
        if len(partial) == 1:
            assert write(second, [4, 5, 6]) is not None

    while_writing(interleave)
    assert write(first) is not None
    assert len(set(partial)) == 2
    assert {segment.tokens for segment in first.scan()} == {(1, 2, 3), (4, 5, 6)}


def test_making_room_never_removes_what_another_is_writing(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path / "prefixes", "model", limit=2000)
    partial = tmp_path / "prefixes" / "other" / "7-abc.partial.safetensors"
    partial.parent.mkdir()
    partial.write_bytes(b"x" * 5000)
    assert write(disk) is not None
    assert partial.exists()


def test_a_partial_file_that_vanishes_is_written_again(tmp_path: Path, while_writing: Hook) -> None:
    disk = DiskTier(tmp_path / "prefixes", "model", LIMIT)
    vanished: list[Path] = []

    def vanish_once(path: Path) -> None:
        if not vanished:
            vanished.append(path)
            path.unlink()

    while_writing(vanish_once)
    stored = write(disk)
    assert stored is not None
    assert stored.path.exists()


def test_a_partial_file_that_vanishes_always_is_skipped_and_the_next_one_written(
    tmp_path: Path, while_writing: Hook
) -> None:
    disk = DiskTier(tmp_path / "prefixes", "model", LIMIT)
    while_writing(lambda path: path.unlink())
    assert write(disk) is None
    assert disk.enabled
    while_writing(lambda _: None)
    assert write(disk) is not None


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path / "prefixes", "model", LIMIT)
    (tmp_path / "prefixes" / "model").rmdir()
    (tmp_path / "prefixes").rmdir()
    assert write(disk) is not None


def test_old_partial_files_are_swept_and_fresh_ones_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "prefixes" / "model"
    folder.mkdir(parents=True)
    names = ["7.partial.safetensors", "8-abc.partial.safetensors"]
    for name, age in zip(names, (7200, 60), strict=True):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    assert DiskTier(tmp_path / "prefixes", "model", LIMIT).scan() == []
    assert [path.name for path in folder.iterdir()] == names[1:]


def test_existing_folders_are_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "prefixes" / "model"
    folder.mkdir(parents=True)
    for path in (folder, folder.parent):
        path.chmod(0o755)
    DiskTier(folder.parent, "model", LIMIT)
    assert (mode(folder.parent), mode(folder)) == (0o700, 0o700)


def test_files_are_private_while_they_are_written(tmp_path: Path, while_writing: Hook) -> None:
    modes: list[int] = []
    while_writing(lambda path: modes.append(mode(path)))
    stored = write(DiskTier(tmp_path / "prefixes", "model", LIMIT))
    assert stored is not None
    assert [*modes, mode(stored.path)] == [0o600, 0o600]


@pytest.mark.parametrize("planted", ["prefixes", "prefixes/model"])
def test_a_planted_link_in_place_of_a_folder_is_not_followed(
    tmp_path: Path, planted: str, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    (elsewhere / "model.safetensors").write_bytes(b"mine")
    link = tmp_path / planted
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(elsewhere)
    disk = DiskTier(tmp_path / "prefixes", "model", LIMIT)
    assert disk.scan() == []
    assert not disk.enabled
    assert "prefixes are not kept on disk: their folder is a symbolic link" in caplog.text
    assert (mode(elsewhere), [path.name for path in elsewhere.iterdir()]) == (0o755, ["model.safetensors"])


def test_a_cache_that_cannot_be_saved_ends_writing_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = DiskTier(tmp_path / "prefixes", "model", LIMIT)
    assert disk.write(TOKENS, 0, "user", [Unsaveable()]) is None
    assert "prefixes are not kept on disk: Model state is not serializable" in caplog.text
    assert not disk.enabled
    assert list((tmp_path / "prefixes" / "model").iterdir()) == []


def test_making_room_never_removes_files_outside_of_the_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights.safetensors").write_bytes(b"x" * 5000)
    disk = DiskTier(tmp_path / "prefixes", "model", limit=2000)
    (tmp_path / "prefixes" / "other").symlink_to(elsewhere)
    assert write(disk) is not None
    assert (elsewhere / "weights.safetensors").exists()


def test_a_planted_link_in_place_of_a_file_is_removed_and_its_target_is_not(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path / "prefixes", "model", LIMIT)
    stored = write(disk)
    assert stored is not None
    moved = stored.path.rename(tmp_path / stored.path.name)
    stored.path.symlink_to(moved)
    assert disk.scan() == []
    assert moved.exists()
    assert not stored.path.is_symlink()


def test_two_engines_at_once_both_leave_their_prefixes_to_a_third(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    settings = Settings(
        engine=EngineSettings(),
        cache=CacheSettings.model_validate({"disk_limit": "1GB"}),
        storage=StorageSettings(cache_dir=tmp_path),
    )
    prompts = [[70 + seed, *range(100, 160)] for seed in range(2)]

    async def cached(supervisor: Supervisor, prompt: list[int]) -> int:
        engine = await supervisor.start(model)
        request = Generate(id=0, prompt=prompt, max_tokens=2, stop_tokens=[], sampling=Sampling(seed=0, temperature=0))
        events = [event async for _, event in engine.generate([request])]
        assert isinstance(events[-1], Finished)
        return max(event.cached for event in events if isinstance(event, Prefilled))

    async def run() -> None:
        supervisors = [Supervisor(settings) for _ in prompts]
        await asyncio.gather(*(cached(s, prompt) for s, prompt in zip(supervisors, prompts, strict=True)))
        await asyncio.gather(*(supervisor.stop() for supervisor in supervisors))
        for prompt in prompts:
            third = Supervisor(settings)
            assert await cached(third, prompt) == len(prompt) - 1
            await third.stop()

    asyncio.run(run())


def test_what_a_small_file_took_says_nothing_of_a_large_one(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path / "prefixes", "model", LIMIT)
    stored = write(disk)
    assert stored is not None
    disk.record_read(stored, 0.05)
    assert disk.seconds_to_read(36_000_000) < 0.1
    slow = replace(stored, nbytes=50_000_000)
    disk.record_read(slow, 5.0)
    assert disk.seconds_to_read(36_000_000) > 1
