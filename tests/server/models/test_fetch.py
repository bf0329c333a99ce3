"""A model is fetched once, whole, and goes on where it was: the worker as a process, on a Hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.fetching import WANTED, Bench
from tests.support.loopback_hub import (
    COMMIT,
    REPO,
    LoopbackHub,
    hold,
    hub_environment,
    loopback_hub,
    safetensors,
    stall,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with loopback_hub(LoopbackHub()) as hub:
        yield Bench(hub, tmp_path / "home")


def test_a_model_is_fetched_once_pinned_to_its_commit_and_only_its_data_files(bench: Bench) -> None:
    first = bench.fetch()
    assert (first.code, first.last) == (0, {"folder": str(bench.storage / "snapshots" / COMMIT)})
    folder = Path(first.last["folder"])
    assert {path.name for path in folder.iterdir()} == WANTED
    assert (folder / "model.safetensors").read_bytes() == bench.hub.files["model.safetensors"]
    assert all(COMMIT in line for line in bench.hub.requests if "/resolve/" in line)
    total = sum(len(bench.hub.files[name]) for name in WANTED)
    assert first.progress[-1]["done"] == first.progress[-1]["total"] == total
    assert {line["phase"] for line in first.progress} == {"fetching"}
    requests = len(bench.hub.requests)
    assert bench.fetch("loopback/tiny@main", "--offline").last == first.last
    assert len(bench.hub.requests) == requests


def test_chat_templates_beside_the_default_one_are_fetched_and_variants_of_the_weights_are_not(bench: Bench) -> None:
    template = "additional_chat_templates/rag.jinja"
    bench.hub.files |= {template: b"rag", "additional_chat_templates/evil.py": b"no", "docs/other.jinja": b"no"}
    bench.hub.files["model.fp16.safetensors"] = bench.hub.files["model.safetensors"]
    folder = Path(bench.fetch().last["folder"])
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == WANTED | {template}
    assert (folder / template).read_bytes() == b"rag"
    assert bench.fetch("loopback/tiny@main", "--offline").last == {"folder": str(folder)}
    (folder / template).unlink()
    assert bench.fetch("loopback/tiny@main", "--offline").code == 1
    assert bench.fetch().code == 0
    assert (folder / template).read_bytes() == b"rag"


def test_two_processes_fetch_a_model_once(bench: Bench) -> None:
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda _: bench.fetch(), range(2)))
    assert [result.code for result in results] == [0, 0]
    assert bench.hub.requests.count(f"GET /{REPO}/resolve/{COMMIT}/model.safetensors") == 1


def test_a_shard_cut_short_in_the_cache_is_fetched_again(bench: Bench) -> None:
    folder = Path(bench.fetch().last["folder"])
    blob = (folder / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    assert bench.fetch(REPO, "--offline").code == 1
    assert bench.fetch().code == 0
    assert (folder / "model.safetensors").read_bytes() == bench.hub.files["model.safetensors"]


def test_a_missing_file_of_any_kind_makes_the_cache_incomplete(bench: Bench) -> None:
    folder = Path(bench.fetch().last["folder"])
    for name in WANTED:
        (folder / name).unlink()
        assert bench.fetch(REPO, "--offline").code == 1, name
        assert bench.fetch().code == 0, name


def test_partial_files_of_a_killed_download_are_swept_and_those_of_a_live_one_kept(bench: Bench) -> None:
    blobs, locks = bench.storage / "blobs", bench.home / "hub" / ".locks" / bench.storage.name
    blobs.mkdir(parents=True)
    locks.mkdir(parents=True)
    (blobs / "abc.12345678.incomplete").write_bytes(b"half")
    (blobs / "def.12345678.incomplete").write_bytes(b"half")
    with FileLock(locks / "def.lock"):
        assert bench.fetch().code == 0
    assert [path.name for path in blobs.glob("*.incomplete")] == ["def.12345678.incomplete"]


def test_a_download_that_was_killed_continues_with_the_files_that_are_whole(bench: Bench) -> None:
    bench.hub.fault(f"GET /{REPO}/resolve/{COMMIT}/model.safetensors", stall, times=1)
    command = [sys.executable, "-m", "server.models.fetch", REPO, "--timeout", "60"]
    environment = {**os.environ, **hub_environment(bench.hub, bench.home)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as worker:
        assert bench.hub.stalled.wait(20)
        worker.kill()
    here = {path.name for path in bench.storage.glob("snapshots/*/*")}
    bench.hub.requests.clear()
    assert bench.fetch().code == 0
    fetched = {line.rpartition("/")[2] for line in bench.hub.requests if line.startswith(f"GET /{REPO}/resolve")}
    # Less when the kill came between a file and its place in the snapshot: it is whole all the same.
    assert {"model.safetensors"} <= fetched <= WANTED - here
    assert list(bench.storage.glob("blobs/*.incomplete")) == []


def test_a_file_half_fetched_when_the_process_was_killed_goes_on_from_its_bytes(bench: Bench) -> None:
    bench.hub.files["model.safetensors"] = weights = safetensors(4_000_000)
    bench.hub.fault(f"GET /{REPO}/resolve/{COMMIT}/model.safetensors", hold(3_000_000), times=1)
    command = [sys.executable, "-m", "server.models.fetch", REPO, "--timeout", "60"]
    environment = {**os.environ, **hub_environment(bench.hub, bench.home)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        next(line for line in map(json.loads, worker.stdout) if line["done"] > 2 * 2**20)
        worker.kill()
    bench.hub.served = 0
    folder = Path(bench.fetch().last["folder"])
    assert (folder / "model.safetensors").read_bytes() == weights
    assert bench.hub.served < len(weights) - 2 * 2**20 + 10_000


def test_what_an_earlier_call_left_counts_from_the_first_report(bench: Bench) -> None:
    shards = {f"model-0000{number}-of-00002.safetensors": safetensors(5000 + number) for number in (1, 2)}
    del bench.hub.files["model.safetensors"]
    bench.hub.files |= shards
    blobs = bench.storage / "blobs"
    blobs.mkdir(parents=True)
    for content in shards.values():
        (blobs / f"{hashlib.sha256(content).hexdigest()}.part").write_bytes(content[:4000])
    done = [line["done"] for line in bench.fetch().progress]
    small = sum(len(bench.hub.files[name]) for name in WANTED - {"model.safetensors"})
    assert done[0] >= small + 2 * 4000
    assert done[-1] == small + sum(map(len, shards.values()))


def test_the_worker_ends_when_its_parent_does(bench: Bench) -> None:
    bench.hub.fault("/api/", stall)
    command = [sys.executable, "-m", "server.models.fetch", REPO, "--timeout", "60", "--watch-stdin"]
    environment = {**os.environ, **hub_environment(bench.hub, bench.home)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as worker:
        assert bench.hub.stalled.wait(20)
        assert worker.stdin is not None
        worker.stdin.close()
        assert worker.wait(10) == 1
