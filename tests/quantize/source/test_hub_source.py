"""A repository of the Hub as a checkpoint: the real huggingface_hub in a process of its own, on a Hub on loopback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_reading import COLUMNS, FIRST, MIB, SECOND, SHARDS, Bench, header, source_files
from tests.support.loopback_hub import (
    COMMIT,
    LoopbackHub,
    elsewhere,
    hold,
    loopback_hub,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with loopback_hub(LoopbackHub(source_files())) as hub:
        yield Bench(hub, tmp_path)


def test_the_rows_are_those_of_a_folder_whether_the_shards_are_kept_or_not(bench: Bench) -> None:
    kept = bench.read()
    discarded = bench.discarding()
    assert kept.last["sha256"] == discarded.last["sha256"] == bench.from_folder()
    assert kept.last["auxiliary_files"] == ["LICENSE", "tokenizer.json"]
    assert kept.lines[0]["revision"] == COMMIT
    assert "modeling_evil.py" not in " ".join(bench.hub.requests)


def test_headers_are_read_by_ranges_and_no_weights(tmp_path: Path) -> None:
    with loopback_hub(LoopbackHub(source_files(rows=100_000))) as hub:
        bench = Bench(hub, tmp_path)
        read = bench.read("--headers-only")
    assert read.last["tensors"] == {f"t{number}": [100_000, COLUMNS] for number in range(3)}
    assert read.last["scratch_bytes"] == sum(len(hub.files[shard]) for shard in SHARDS)
    # 100 kB of each shard of 25 MB, and what the sockets held when the client had enough.
    assert hub.served < 10_000_000
    assert all(COMMIT in line for line in hub.requests if "/resolve/" in line)


def test_a_server_that_knows_no_ranges_is_cut_off_after_the_header(tmp_path: Path) -> None:
    def whole(handler: Any) -> None:
        handler.answer(200, handler.named()[1], {})

    with loopback_hub(LoopbackHub(source_files(rows=100_000))) as hub:
        hub.fault("GET /loopback/tiny/resolve", whole)
        assert Bench(hub, tmp_path).read("--headers-only").code == 0
    assert hub.served < 10_000_000


def test_shards_that_are_not_kept_are_at_most_two_and_gone_at_the_end(bench: Bench) -> None:
    read = bench.discarding()
    opened = {line["shard"]: line["files"] for line in read.lines if "shard" in line}
    assert list(opened) == SHARDS
    for shard, files in opened.items():
        following = SHARDS[SHARDS.index(shard) + 1 :][:1]
        assert {name.removesuffix(".part") for name in files} <= {shard, *following}
    assert read.lines[0]["scratch_bytes"] == len(bench.hub.files[SHARDS[0]]) * 2
    assert list(bench.scratch.iterdir()) == []
    assert list(bench.storage.glob("snapshots/*/model-*")) == []


def test_shards_that_are_kept_are_found_by_the_hubs_own_tools_and_not_fetched_again(bench: Bench) -> None:
    first = bench.read()
    assert {path.name for path in (bench.storage / "snapshots" / COMMIT).iterdir()} >= {"config.json", *SHARDS}
    assert (bench.storage / "refs" / "main").read_text() == COMMIT
    bench.hub.requests.clear()
    again = bench.discarding()
    assert again.last == first.last
    assert again.lines[0]["scratch_bytes"] == 0
    assert bench.hub.requests.count(SECOND) == 1, "only the header is read from the Hub again"
    bench.hub.requests.clear()
    assert bench.read("--offline").last["sha256"] == first.last["sha256"]
    assert bench.hub.requests == []


@pytest.mark.parametrize("keep", [True, False])
def test_a_shard_half_fetched_when_the_process_was_killed_goes_on_from_its_bytes(tmp_path: Path, keep: bool) -> None:
    with loopback_hub(LoopbackHub(source_files(rows=20_000))) as hub:
        bench, half = Bench(hub, tmp_path), 3_000_000
        options = [] if keep else ["--scratch", str(bench.scratch)]
        hub.fault(FIRST, header, times=1)
        with bench.held(hold(half), *options) as reader:
            assert reader.stdout is not None
            next(line for line in map(json.loads, reader.stdout) if "waiting" in line and line["waiting"][1] >= 2 * MIB)
        hub.served = 0
        again = bench.read(*options)
        assert again.last["sha256"] == bench.from_folder()
        if keep:
            # The disk is asked only for what is still to come.
            assert again.lines[0]["scratch_bytes"] <= sum(len(hub.files[shard]) for shard in SHARDS) - 2 * MIB
        whole = sum(len(data) for data in hub.files.values())
        headers = 3 * 100_000
        assert hub.served <= whole - 2 * MIB + headers + 10_000


def test_the_next_shard_is_fetched_while_one_is_used(bench: Bench) -> None:
    bench.hub.fault(SECOND, header, times=1)
    with bench.held(hold(1000), line=SECOND) as reader:
        assert reader.stdout is not None
        opened = next(line for line in map(json.loads, reader.stdout) if "shard" in line)
    assert opened["shard"] == SHARDS[0]


def test_a_build_that_waits_for_a_shard_is_told_how_far_it_is(bench: Bench) -> None:
    told = [line["waiting"] for line in bench.read().lines if "waiting" in line]
    assert told[-1][0] in SHARDS
    assert any(name == SHARDS[0] and here == size == len(bench.hub.files[name]) for name, here, size in told)


def test_the_token_goes_to_the_hub_and_to_no_other_host(bench: Bench) -> None:
    with loopback_hub(LoopbackHub(bench.hub.files)) as storage:
        bench.hub.fault("GET /loopback/tiny/resolve", elsewhere(storage.url))
        assert bench.discarding().code == 0
    assert set(bench.hub.tokens) == {"Bearer hf_of_the_test"}
    assert len(storage.requests) >= len(SHARDS) * 2
    assert set(storage.tokens) == {None}


def test_two_processes_fetch_a_shard_once(bench: Bench) -> None:
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda _: bench.read(), range(2)))
    assert results[0].last == results[1].last
    # A header for each of the two, and one transfer.
    assert bench.hub.requests.count(FIRST) == 3


def test_a_partial_of_a_shard_that_is_no_longer_wanted_is_swept(bench: Bench) -> None:
    blobs = bench.storage / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{'0' * 64}.part").write_bytes(b"half")
    assert bench.read().code == 0
    assert list(blobs.glob("*.part")) == []
    shutil.rmtree(bench.storage)
